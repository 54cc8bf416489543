"""Units of preparation: the share of the inputs that one worker turns into shards, and processes that share them out.

A unit is worked on in a folder of a temporary name, which gets its final name when all its shards are on disk: a
finished unit is never done again, an unfinished one leaves nothing that counts. Its shards depend on its pieces and the
settings alone, so neither the number of workers nor a killed run shows in them.

Workers are spawned processes that take units over a pipe. One that loses its parent stops at its next message; one that
dies is noticed.
"""

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pretrain.data.manifest import ShardRow
from pretrain.data.prepare.cutting import Cut, Member, cut_text, members_of
from pretrain.data.prepare.documents import read_documents
from pretrain.data.prepare.inputs import FilePart
from pretrain.data.prepare.records import Problem
from pretrain.data.shards import ShardWriter
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.storage import clear_away, naming, parse_json, read_file, write_atomically

SHARD_TEXT_BYTES = 256 << 20
"""A shard holds at most so much text, whatever its other limits."""
SHARD_DOCUMENTS = 1 << 20
"""And so many documents: more than there are in that text but of very short ones, whose index would know no end."""
REPORT_BYTES = 1 << 18
REPORTED_PROBLEMS = 10

RESULT_NAME = "result.json"
PROBLEMS_NAME = "problems.txt"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Consecutive pieces of the inputs."""

    number: int
    pieces: tuple[FilePart, ...]

    @property
    def name(self) -> str:
        """Of the folder of its shards."""
        return f"unit-{self.number:06d}"

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(piece.size for piece in self.pieces)


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
    """Key of the text in JSON objects, column of it in .parquet and .arrow files."""
    dataset: str | None = None
    """A data set by name: NAME or NAME:CONFIG."""
    split: str | None = None
    """Split of that, or of inputs that `datasets.save_to_disk` wrote with several."""
    split_documents: Cut | None = None
    """Where a document is cut into several."""
    max_document_tokens: int | None = None
    """A longer document is cut after every so many tokens. Default: none is."""
    shard_documents: int | None = None
    """Most documents of a shard. Default: no limit but a shard's size."""
    shard_tokens: int | None = None
    """Most tokens of a shard (a longer document gets one to itself). Default: no limit but a shard's size."""
    num_workers: int = 1
    """Processes; 0 works in the calling one."""
    strict: bool = False
    """The first bad input is an error."""

    def __post_init__(self) -> None:
        for name in ("shard_documents", "shard_tokens", "max_document_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                what = "document" if name.endswith("document_tokens") else "shard"
                raise ValueError(f"{name}={value}: a {what} holds at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers} is negative")
        if self.tokenizer is None and self.shard_tokens is not None:
            raise ValueError("shard_tokens limits shards of tokens; shards of text have shard_documents")
        if self.tokenizer is None and self.max_document_tokens is not None:
            raise ValueError("max_document_tokens counts tokens, and the text is kept; text is cut by split_documents")


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """What every unit of a run has in common."""

    settings: PrepareSettings
    folder: Path
    """Holds the folders of units."""
    owner: str
    """Who works on them, in the names of unfinished ones: parts of a run share the folder."""


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What a finished unit holds."""

    rows: tuple[ShardRow, ...]
    """Its shards, under the names they have in the unit's folder."""
    problems: dict[str, int]
    """Counts by reason; the lines themselves are in PROBLEMS_NAME beside."""
    num_texts: int
    """What its documents were before they were cut."""


@dataclass(frozen=True)
class Started:
    """Work begins, or continues."""

    total_bytes: int
    """Stored bytes of all inputs."""
    done_bytes: int
    """Those that an earlier call has finished."""


@dataclass(frozen=True)
class Advance:
    """Progress since the last one."""

    stored_bytes: int
    documents: int


Event = Started | Advance | Problem
Report = Callable[[Event], None]


def read_result(folder: Path) -> UnitResult:
    """The result of a finished unit, from its folder."""
    values = parse_json(read_file(folder / RESULT_NAME))
    return UnitResult(rows=tuple(ShardRow(**row) for row in values.pop("rows")), **values)


def run_unit(job: PrepareJob, unit: Unit, tokenizer: Tokenizer | None, report: Report) -> None:
    """Turn a unit into shards in a folder of its name, in `job.folder`.

    Args:
        job: settings.
        unit: what to read.
        tokenizer: that of `job.settings.tokenizer`, loaded.
        report: receives progress, and the first few problems of each reason.

    Raises:
        ValueError: the first problem, if `job.settings.strict`.
        OSError: if an input cannot be read or a shard cannot be written; nothing of the unit stays.
    """
    final = job.folder / unit.name
    # The process id keeps a worker that outlives its killed parent for a moment out of the way of its successor.
    temporary = final.with_name(f"{final.name}.{job.owner}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        problems: Counter[str] = Counter()
        texts: list[int] = []
        path = temporary / PROBLEMS_NAME
        with naming(path), path.open("w", encoding="utf-8") as lines:

            def on_problem(problem: Problem) -> None:
                if job.settings.strict:
                    raise ValueError(str(problem))
                problems[problem.reason] += 1
                lines.write(f"{problem}\n")
                if problems[problem.reason] <= REPORTED_PROBLEMS:
                    report(problem)

            rows = _write_shards(job, temporary, _members(job, unit, tokenizer, report, on_problem, texts.append))
        result = UnitResult(rows=tuple(rows), problems=dict(sorted(problems.items())), num_texts=sum(texts))
        write_atomically(temporary / RESULT_NAME, json.dumps(asdict(result)).encode())
        try:
            temporary.rename(final)
        except OSError:
            # Parts of two divisions share units, and a job believed dead may still run: the first to finish counts, the
            # bytes are the same.
            if not final.is_dir():
                raise
    finally:
        clear_away(temporary)


def _members(
    job: PrepareJob,
    unit: Unit,
    tokenizer: Tokenizer | None,
    report: Report,
    on_problem: Callable[[Problem], None],
    on_texts: Callable[[int], None],
) -> Iterator[Member]:
    """What shards hold of the documents of a unit, with progress reported every few stored bytes; `on_texts` is told
    how many those of a piece were before they were cut."""
    for piece in unit.pieces:
        reported, documents, texts = 0, 0, 0
        for item in read_documents(piece, job.settings.text_field):
            if isinstance(item, Problem):
                on_problem(item)
                continue
            texts += 1
            for document in cut_text(item, job.settings.split_documents):
                try:
                    yield from members_of(document, tokenizer, job.settings.max_document_tokens)
                except ValueError as error:  # text that the tokenizer cannot write
                    raise ValueError(f"{piece.path}: {error}") from None
                documents += 1
            if item.consumed - reported >= REPORT_BYTES:
                report(Advance(item.consumed - reported, documents))
                reported, documents = item.consumed, 0
        report(Advance(piece.size - reported, documents))
        on_texts(texts)


def _write_shards(job: PrepareJob, folder: Path, members: Iterator[Member]) -> list[ShardRow]:
    """Write members to shards part-000000.tar, ... in `folder`, none of them empty."""
    rows: list[ShardRow] = []
    shard: ShardWriter | None = None
    settings = job.settings
    tokens, text_bytes = 0, 0

    def close() -> None:
        if shard is not None:
            rows.append(shard.close(tokens if settings.tokenizer else None))

    try:
        for payload, num_tokens, num_text_bytes, hash_of_text in members:
            if (
                shard is None
                or len(shard) == min(settings.shard_documents or SHARD_DOCUMENTS, SHARD_DOCUMENTS)
                or (settings.shard_tokens is not None and tokens + num_tokens > settings.shard_tokens)
                or text_bytes + num_text_bytes > SHARD_TEXT_BYTES
            ):
                close()
                shard = ShardWriter(folder, f"part-{len(rows):06d}.tar", "npy" if settings.tokenizer else "txt")
                tokens, text_bytes = 0, 0
            shard.add(payload, hash_of_text)
            tokens += num_tokens
            text_bytes += num_text_bytes
        close()
    finally:
        if shard is not None:
            shard.discard()
    return rows


def run_units(job: PrepareJob, units: Sequence[Unit], report: Report) -> None:
    """Run units in processes of their own; with no workers, in this one.

    Raises:
        ValueError, OSError: what `run_unit` raises, of whichever unit fails first; ChildProcessError, an OSError, if a
            worker dies.
    """
    if job.settings.num_workers == 0:
        tokenizer = Tokenizer.load(job.settings.tokenizer) if job.settings.tokenizer else None
        for unit in units:
            run_unit(job, unit, tokenizer, report)
        return
    waiting = iter(units)
    workers: dict[Connection, BaseProcess] = {}
    try:
        with without_interrupts():
            for _ in range(min(job.settings.num_workers, len(units))):
                connection, process = _start_worker(job)
                workers[connection] = process
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                message = _receive(connection, workers[connection])
                if message is None:
                    unit = next(waiting, None)
                    connection.send(unit)
                    if unit is None:
                        workers.pop(connection).join()
                elif isinstance(message, Exception):
                    raise message
                else:
                    report(message)
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: it is the parent's to handle."""
    resource_tracker.ensure_running()  # of multiprocessing, whose start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(job: PrepareJob) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _receive(connection: Connection, process: BaseProcess) -> Event | Exception | None:
    try:
        return connection.recv()
    except EOFError:
        process.join()
        how = f"a worker process died (exit code {process.exitcode}; out of memory?)"
        raise ChildProcessError(f"{how}; finished work is kept: run the same command again") from None


def _work(connection: Connection, job: PrepareJob) -> None:
    """A worker: asks for a unit with None, reports, and ends on None, on an error that it sends, or with its parent."""
    try:
        tokenizer = Tokenizer.load(job.settings.tokenizer) if job.settings.tokenizer else None
        connection.send(None)
        while (unit := connection.recv()) is not None:
            run_unit(job, unit, tokenizer, connection.send)
            connection.send(None)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return
    except (ValueError, OSError) as error:
        connection.send(error)
