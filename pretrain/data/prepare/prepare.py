"""Preparation: text files to a source of shards, in parallel, restartable, byte for byte the same however often it was
interrupted.

Steps of `prepare`:
1. Find the inputs and cut them into units of about equal size. The cut depends on the inputs alone.
2. Note in `prepare.json` what is being made of what. A later call on the folder must agree with it, so that a restart
   continues the same work, a finished folder is reused and another one is never overwritten.
3. Workers turn units into shards under `.work/` (`pretrain/data/prepare/units.py`); units that an earlier call finished
   are kept.
4. Give the shards of all units, in order, their final names; write `problems.txt` and, last, the manifest. Every move
   can be repeated.

Many machines with one file system share the work by units: each calls `prepare_part` on a part of its own, then one
calls `merge_parts`, which is step 4. Since a unit's shards depend on the unit alone, neither the number of parts nor
which of them was killed shows either.

Cost: one worker encodes at the speed of SentencePiece (reading, hashing and writing take a few per cent of its time);
memory of a worker is one document and the index of one shard, 29 bytes for each of its documents.
"""

import errno
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from pretrain.data.manifest import MANIFEST_NAME, Header, Manifest, ShardRow, write_manifest
from pretrain.data.prepare.claim import WHOLE, WORK_NAME, Part, claim, lock
from pretrain.data.prepare.documents import find_inputs, split_file
from pretrain.data.prepare.inputs import InputFile
from pretrain.data.prepare.records import Problem
from pretrain.data.prepare.units import (
    PROBLEMS_NAME,
    PrepareJob,
    PrepareSettings,
    Report,
    Started,
    Unit,
    read_result,
    run_units,
)
from pretrain.data.shards import index_name
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.storage import (
    clear_away,
    is_there,
    names_in,
    naming,
    read_file,
    require_missing,
    sync_folder,
    write_atomically,
)

MIN_UNIT_BYTES, MAX_UNIT_BYTES = 1 << 20, 256 << 20
UNITS_PER_RUN = 64
"""Units that a run of ordinary size is cut into: enough for many workers, few enough for shards of a good size."""


@dataclass(frozen=True, kw_only=True)
class PartResult:
    num_units: int
    """Units of this part; 0 if there are more parts than units."""
    resumed_units: int
    """Those of them that were finished before."""


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    header: Header
    reused: bool
    """The folder held exactly this already."""
    resumed_units: int
    """Units that an earlier, interrupted call had finished."""
    num_texts: int | None
    """What its documents were before they were cut; None if it is reused."""


def prepare(settings: PrepareSettings, report: Report = lambda event: None) -> PrepareResult:
    """Turn text files into a source of shards; `report` receives progress and bad inputs (`PrepareProgress`).

    Raises:
        ValueError: if the inputs, the tokenizer or the output folder cannot be used, no document is found, or `strict`
            meets a bad input.
        OSError: if reading or writing fails. What is finished is kept, and the same call continues.
    """
    tokenizer, files = _load(settings, report)
    output = settings.output
    with _disk_errors(output):
        claim(output, _identity(settings, tokenizer, files))
        if (header := _finished(settings)) is not None:
            return PrepareResult(header=header, reused=True, resumed_units=0, num_texts=None)
        with lock(output):
            units = _cut(files)
            resumed = _run(settings, units, WHOLE, report)
            header, num_texts = _finish(output, units, tokenizer)
        _check_strict(settings, output, header.problems)
    return PrepareResult(header=header, reused=False, resumed_units=resumed, num_texts=num_texts)


def prepare_part(settings: PrepareSettings, part: Part, report: Report = lambda event: None) -> PartResult:
    """Do one part of what `prepare` does, up to and without the manifest. Parts have the same settings and may run at
    the same time, on machines that share a disk. Raises as `prepare`."""
    tokenizer, files = _load(settings, report)
    with _disk_errors(settings.output):
        claim(settings.output, _identity(settings, tokenizer, files))
        units = _cut(files)
        chosen = part.select(units)
        if _finished(settings) is not None:
            return PartResult(num_units=len(chosen), resumed_units=len(chosen))
        with lock(settings.output, part):
            return PartResult(num_units=len(chosen), resumed_units=_run(settings, chosen, part, report))


def merge_parts(settings: PrepareSettings, num_parts: int) -> PrepareResult:
    """Make a source of what `num_parts` calls of `prepare_part` did: bytewise the one that `prepare` makes.

    Raises:
        ValueError: naming the parts that are not finished; if the parts were made with other settings; otherwise as
            `prepare`.
        OSError: as of `prepare`.
    """
    tokenizer, files = _load(settings, report=lambda event: None)  # the parts have said what there is to say
    output = settings.output
    with _disk_errors(output):
        claim(output, _identity(settings, tokenizer, files))
        if (header := _finished(settings)) is not None:
            return PrepareResult(header=header, reused=True, resumed_units=0, num_texts=None)
        units = _cut(files)
        parts = [Part(number, num_parts) for number in range(1, num_parts + 1)]
        finished = _finished_units(output)
        missing = [part.number for part in parts if not finished >= {unit.name for unit in part.select(units)}]
        if missing:
            which = f"not finished, of {num_parts} parts: {_ranges(missing)}"
            raise ValueError(f"{output}: {which}; run them, then merge again")
        with lock(output):
            header, num_texts = _finish(output, units, tokenizer)
        _check_strict(settings, output, header.problems)
    return PrepareResult(header=header, reused=False, resumed_units=len(units), num_texts=num_texts)


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as Slurm's --array takes them: 3-5,9."""
    by_offset = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])  # equal along a run without gaps
    runs = [[number for _, number in run] for _, run in by_offset]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _load(settings: PrepareSettings, report: Report) -> tuple[Tokenizer | None, list[InputFile]]:
    tokenizer = Tokenizer.load(settings.tokenizer) if settings.tokenizer else None

    def on_problem(problem: Problem) -> None:
        if settings.strict:
            raise ValueError(str(problem))
        report(problem)

    return tokenizer, find_inputs(settings.inputs, on_problem, dataset=settings.dataset, split=settings.split)


def _finished(settings: PrepareSettings) -> Header | None:
    """The header of a folder that is finished, else None."""
    output = settings.output
    if not is_there(output / MANIFEST_NAME):
        return None
    clear_away(output / WORK_NAME)
    header = Manifest.open(output).header
    _check_strict(settings, output, header.problems)
    return header


def _identity(settings: PrepareSettings, tokenizer: Tokenizer | None, files: list[InputFile]) -> dict[str, object]:
    """What makes two calls the same."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.version}\n".encode())
    return {
        "tokenizer_sha256": tokenizer.sha256 if tokenizer else None,
        "text_field": settings.text_field,
        "split_documents": settings.split_documents,
        "max_document_tokens": settings.max_document_tokens,
        "shard_documents": settings.shard_documents,
        "shard_tokens": settings.shard_tokens,
        "num_inputs": len(files),
        "inputs_sha256": digest.hexdigest(),
    }


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """Say what a full disk means here, and that a file which is gone now is no bad input: the inputs were found."""
    advice = {errno.ENOENT: "", **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room and ")}
    try:
        yield
    except OSError as error:
        if error.errno not in advice:
            raise
        raise OSError(
            f"{error.filename or output}: {error.strerror}; finished work is kept: "
            f"{advice[error.errno]}run the same command again"
        ) from None


def _cut(files: Iterable[InputFile]) -> list[Unit]:
    """Units of consecutive pieces; small files share one, big ones are split where their format allows."""
    files = list(files)
    unit_bytes = min(max(sum(file.size for file in files) // UNITS_PER_RUN, MIN_UNIT_BYTES), MAX_UNIT_BYTES)
    units: list[Unit] = []
    pieces, size = [], 0
    for file in files:
        for piece in split_file(file, unit_bytes):
            pieces.append(piece)
            size += piece.size
            if size >= unit_bytes:
                units.append(Unit(number=len(units), pieces=tuple(pieces)))
                pieces, size = [], 0
    if pieces:
        units.append(Unit(number=len(units), pieces=tuple(pieces)))
    return units


def _finished_units(output: Path) -> set[str]:
    """Names of the folders of finished units."""
    return set(names_in(output / WORK_NAME) or ())


def _run(settings: PrepareSettings, units: list[Unit], part: Part, report: Report) -> int:
    """Run those of the units of a part that are not finished; returns how many were."""
    work = settings.output / WORK_NAME
    # A run of all units is alone in the folder, a part may clear away its own only.
    unfinished = "unit-*.tmp" if part == WHOLE else f"unit-*.{part.owner}.*.tmp"
    _remove(work, unfinished)
    finished = _finished_units(settings.output)
    waiting = [unit for unit in units if unit.name not in finished]
    job = PrepareJob(settings=settings, folder=work, owner=part.owner)
    total = sum(unit.size for unit in units)
    report(Started(total, total - sum(unit.size for unit in waiting)))
    try:
        run_units(job, waiting, report)
    finally:
        _remove(work, unfinished)
    return len(units) - len(waiting)


def _remove(work: Path, pattern: str) -> None:
    for folder in work.glob(pattern):
        clear_away(folder)


def _finish(output: Path, units: list[Unit], tokenizer: Tokenizer | None) -> tuple[Header, int]:
    """Number the shards of all units and write the manifest; returns its header and the number of texts."""
    rows: list[ShardRow] = []
    num_texts = 0
    problems: Counter[str] = Counter()
    for unit in units:
        folder = output / WORK_NAME / unit.name
        result = read_result(folder)
        problems.update(result.problems)
        num_texts += result.num_texts
        for row in result.rows:
            name = f"shard-{len(rows):06d}.tar"
            for source, target in ((index_name(row.shard), index_name(name)), (row.shard, name)):
                _move(folder / source, output / target)
            rows.append(replace(row, shard=name))
    sync_folder(output)
    if problems:
        folders = (output / WORK_NAME / unit.name for unit in units)
        write_atomically(output / PROBLEMS_NAME, (read_file(folder / PROBLEMS_NAME) for folder in folders))
    if not rows:
        if not problems:
            raise ValueError("the inputs hold no document: only blank lines")
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(problems.items()))
        with naming(output / PROBLEMS_NAME), (output / PROBLEMS_NAME).open("rb") as file:
            first = file.readline().rstrip(b"\n").decode(errors="replace")
        raise ValueError(f"the inputs hold no document ({counts}; see {output / PROBLEMS_NAME}): {first}")
    header = write_manifest(
        output,
        Header(
            kind="tokens" if tokenizer else "text",
            tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
            vocab_size=tokenizer.vocab_size if tokenizer else None,
            problems=dict(sorted(problems.items())),
        ),
        rows,
    )
    clear_away(output / WORK_NAME)
    return header, num_texts


def _move(source: Path, target: Path) -> None:
    """Give a finished file its final name, unless an interrupted call did so before."""
    try:
        source.replace(target)
    except FileNotFoundError:
        require_missing(source)
        if not is_there(target):
            raise


def _check_strict(settings: PrepareSettings, output: Path, problems: dict[str, int]) -> None:
    """A strict call on the work of one that was not."""
    if settings.strict and problems:
        path = output / PROBLEMS_NAME
        with naming(path), path.open(encoding="utf-8") as lines:
            first = lines.readline().rstrip()
        raise ValueError(f"{first} (1 of {sum(problems.values())} bad inputs, see {output / PROBLEMS_NAME})")
