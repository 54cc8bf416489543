"""Preparation: text files to a source of shards, in parallel, restartable, byte for byte the same however often it was interrupted.

Steps of `prepare`:
1. Find the inputs and cut them into units of about equal size. The cut depends on the inputs alone.
2. Note in `prepare.json` what is being made of what. A later call on the folder must agree with it, so that a restart continues the
   same work, a finished folder is reused and another one is never overwritten.
3. Workers turn units into shards under `.work/` (`pretrain/data/units.py`); units that an earlier call finished are kept.
4. Give the shards of all units, in order, their final names; write `problems.txt` and, last, the manifest. Every move can be repeated.

Cost: one worker encodes at the speed of SentencePiece (reading, hashing and writing take a few per cent of its time); memory of a worker is
one document and the index of one shard.
"""

import errno
import fcntl
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pretrain.data.documents import InputFile, find_inputs, split_file
from pretrain.data.shards import MANIFEST_NAME, Header, Manifest, ShardRow, index_name, sync_folder, write_atomically, write_manifest
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.units import PROBLEMS_NAME, Job, Report, Started, Unit, read_result, run_units, unit_folder

IDENTITY_NAME = "prepare.json"
WORK_NAME = ".work"
LOCK_NAME = "lock"

MIN_UNIT_BYTES, MAX_UNIT_BYTES = 1 << 20, 256 << 20
UNITS_PER_RUN = 64
"""Units that a run of ordinary size is cut into: enough for many workers, few enough for shards of a good size."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What to prepare. All but `num_workers` and `strict` belongs to the identity of the result."""

    inputs: tuple[str, ...]
    """Files, globs or fsspec URLs."""
    output: Path
    """Folder of the source; new, empty, or of an earlier call with the same settings."""
    tokenizer: Path | None
    """Tokenizer that makes token ids; None keeps the text."""
    text_field: str = "text"
    """Key of the text in JSON objects, column of it in parquet files."""
    shard_documents: int | None = None
    """Most documents of a shard. Default: no limit but a shard's size."""
    shard_tokens: int | None = None
    """Most tokens of a shard (a longer document gets one to itself). Default: no limit but a shard's size."""
    num_workers: int = 1
    """Processes; 0 works in the calling one."""
    strict: bool = False
    """The first bad input is an error."""

    def __post_init__(self) -> None:
        for name in ("shard_documents", "shard_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: a shard holds at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers} is negative")
        if self.tokenizer is None and self.shard_tokens is not None:
            raise ValueError("shard_tokens limits shards of tokens; shards of text have shard_documents")


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    header: Header
    reused: bool
    """The folder held exactly this already."""
    resumed_units: int
    """Units that an earlier, interrupted call had finished."""


def prepare(settings: PrepareSettings, report: Report = lambda event: None) -> PrepareResult:
    """Turn text files into a source of shards.

    Args:
        settings: what to prepare.
        report: is told of progress and of bad inputs, for example a `Progress`.

    Raises:
        ValueError: if the inputs, the tokenizer or the output folder will not do, no document is found, or `strict` meets a bad input.
        OSError: if reading or writing fails. What is finished is kept, and the same call continues.
    """
    tokenizer = Tokenizer.load(settings.tokenizer) if settings.tokenizer else None
    files = find_inputs(settings.inputs)
    output = settings.output
    with _disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        _claim(output, _identity(settings, tokenizer, files))
        if (output / MANIFEST_NAME).exists():
            shutil.rmtree(output / WORK_NAME, ignore_errors=True)
            header = Manifest.open(output).header
            _check_strict(settings, output, header.problems)
            return PrepareResult(header=header, reused=True, resumed_units=0)
        with _lock(output / WORK_NAME):
            units = _cut(files)
            resumed = _run(settings, units, report)
            header = _finish(output, units, tokenizer)
        _check_strict(settings, output, header.problems)
    return PrepareResult(header=header, reused=False, resumed_units=resumed)


def _identity(settings: PrepareSettings, tokenizer: Tokenizer | None, files: list[InputFile]) -> dict[str, object]:
    """What makes two calls the same."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.version}\n".encode())
    return {
        "tokenizer_sha256": tokenizer.sha256 if tokenizer else None,
        "text_field": settings.text_field,
        "shard_documents": settings.shard_documents,
        "shard_tokens": settings.shard_tokens,
        "num_inputs": len(files),
        "inputs_sha256": digest.hexdigest(),
    }


def _claim(output: Path, identity: dict[str, object]) -> None:
    """Make the folder ours for this work, or check that it is."""
    path = output / IDENTITY_NAME
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        if any(entry.suffix != ".tmp" for entry in output.iterdir()):
            raise ValueError(f"{output}: holds files that are not of tools/prepare_data.py; name a new folder") from None
        write_atomically(path, json.dumps(identity, indent=1).encode())
        return
    except ValueError:
        raise ValueError(f"{path}: is damaged; delete {output} or name a new folder") from None
    changed = [key for key, value in identity.items() if found.get(key) != value]
    if changed:
        names = {"inputs_sha256": "other or changed input files", "num_inputs": "another number of input files"}
        reasons = ", ".join(names.get(key, f"{key}={found.get(key)} (now {identity[key]})") for key in changed)
        raise ValueError(f"{output}: was prepared with {reasons}; delete it or name a new folder")


@contextmanager
def _lock(work: Path) -> Iterator[None]:
    """Hold the work folder against other runs; the lock goes with the process that holds it."""
    work.mkdir(exist_ok=True)
    with (work / LOCK_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{work.parent}: another run is preparing this folder; wait for it or name a new folder") from None
        yield


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """Say what a full disk means here."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(f"{output}: {error.strerror}; finished work is kept: make room and run the same command again") from None
        raise


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


def _run(settings: PrepareSettings, units: list[Unit], report: Report) -> int:
    """Run the units that are not finished; returns how many were."""
    work = settings.output / WORK_NAME
    _remove_unfinished(work)
    waiting = [unit for unit in units if not unit_folder(work, unit.number).exists()]
    job = Job(
        folder=work,
        tokenizer=settings.tokenizer,
        text_field=settings.text_field,
        shard_documents=settings.shard_documents,
        shard_tokens=settings.shard_tokens,
        strict=settings.strict,
    )
    total = sum(unit.size for unit in units)
    report(Started(total_bytes=total, done_bytes=total - sum(unit.size for unit in waiting)))
    try:
        run_units(job, waiting, settings.num_workers, report)
    finally:
        _remove_unfinished(work)
    return len(units) - len(waiting)


def _remove_unfinished(work: Path) -> None:
    for folder in work.glob("unit-*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def _finish(output: Path, units: list[Unit], tokenizer: Tokenizer | None) -> Header:
    """Number the shards of all units and write the manifest."""
    rows: list[ShardRow] = []
    problems: Counter[str] = Counter()
    lines: list[bytes] = []
    for unit in units:
        folder = unit_folder(output / WORK_NAME, unit.number)
        result = read_result(folder)
        problems.update(result.problems)
        lines.append((folder / PROBLEMS_NAME).read_bytes())
        for row in result.rows:
            name = f"shard-{len(rows):06d}.tar"
            for source, target in ((index_name(row.shard), index_name(name)), (row.shard, name)):
                # Not there: an interrupted call has moved it already.
                with suppress(FileNotFoundError):
                    (folder / source).replace(output / target)
            rows.append(replace(row, shard=name))
    sync_folder(output)
    if problems:
        write_atomically(output / PROBLEMS_NAME, b"".join(lines))
    if not rows:
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(problems.items()))
        raise ValueError(f"the inputs hold no document ({counts}; see {output / PROBLEMS_NAME})")
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
    shutil.rmtree(output / WORK_NAME, ignore_errors=True)
    return header


def _check_strict(settings: PrepareSettings, output: Path, problems: dict[str, int]) -> None:
    """A strict call on the work of one that was not."""
    if settings.strict and problems:
        with (output / PROBLEMS_NAME).open(encoding="utf-8") as lines:
            first = lines.readline().rstrip()
        raise ValueError(f"{first} (1 of {sum(problems.values())} bad inputs, see {output / PROBLEMS_NAME})")
