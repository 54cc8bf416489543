"""Documents of WebDataset tars: samples as the `webdataset` library reads them, from a file, a URL or a command.

A sample is the members whose names agree up to the first dot. Its text is its `.txt` member, without one the text field
of the object in its `.json` member, without that one of every line of its `.jsonl` member. Other members that hold
text, or may hold it, are named; those of images and the like, links and what the library keeps for itself (`__meta__`)
are passed over. The library gives bytes, its decoders are not used, and they are what would unpickle: a pickle is named
and never read. A tar may be compressed, whatever its name says.

The library takes a header that it cannot read for the end of the tar. So it is handed one block at a time: where it
stops there must be a block of zeros, and nothing but zeros behind it.

Cost: one pass of reading; memory of the texts of one sample.
"""

import codecs
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from webdataset.gopen import Pipe, gopen_pipe
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from pretrain.data.prepare.archives import ARCHIVE_CHUNK, DamagedArchiveError, inflate
from pretrain.data.prepare.inputs import FilePart
from pretrain.data.prepare.records import Document, Problem, parse_record, parse_text
from pretrain.data.shards import TAR_BLOCK

UNUSED_TEXT = "unused text"
TEXT_KINDS = ("", ".txt", ".text", ".md", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".html", ".htm", ".xml", ".tex",
              ".rst", ".parquet")  # fmt: skip
"""Last suffixes of members that hold text, or may hold it, plain or compressed."""
PACKED = (".gz", ".xz", ".zst", ".bz2")
PICKLED = (".pyd", ".pickle", ".pkl", ".pth", ".pt")
"""Last suffixes of members that hold a pickle; the library's decoders would load most of them."""
READ = ("txt", "json", "jsonl")
"""Extensions of members that become documents: of several in a sample the first."""
MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
DAMAGE = (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError, MemoryError)
"""What tarfile raises of bytes that are no tar: of a size that no memory holds and of nested long names, too."""


def member_kind(name: str) -> str:
    """The last suffix of a member, without that of its packing: ".jsonl" of a.jsonl.gz."""
    lower = name.lower()
    packing = next((suffix for suffix in PACKED if lower.endswith(suffix)), "")
    return PurePosixPath(lower.removesuffix(packing)).suffix


def read_samples(
    piece: FilePart, content: BinaryIO, consumed: Callable[[], int], text_field: str
) -> Iterator[Document | Problem]:
    """The documents of a tar.

    Args:
        piece: all of it.
        content: its bytes, decompressed as its name says.
        consumed: stored bytes read so far.
        text_field: key of the text in JSON objects.

    Raises:
        OSError: it cannot be read.
    """
    blocks, aside = _Blocks(_unpacked(content)), list[Problem]()
    damage: list[str] = []

    def is_read(name: str) -> bool:
        base, extension = base_plus_ext(name)
        if base is not None and extension is not None and extension.lower() in READ:
            return True
        where = f"{piece.path}, member {name}"
        if member_kind(name) in PICKLED:
            aside.append(Problem("pickled member", where, "reading a pickle can run code: it is refused"))
        elif member_kind(name) in TEXT_KINDS:
            aside.append(Problem(UNUSED_TEXT, where, "a sample's text is its .txt, .json or .jsonl member, no other"))
        return False

    def members() -> Iterator[dict[str, Any]]:
        try:
            for member in tar_file_iterator(cast("Any", blocks), select_files=is_read):
                yield {**member, "__url__": piece.path}
        except DAMAGE as error:
            damage.append(str(error) or type(error).__name__)

    def on_twice(error: Exception) -> bool:
        aside.append(Problem(UNUSED_TEXT, piece.path, f"{error.args[0]}"))
        return True

    for sample in group_by_keys(members(), handler=on_twice):
        yield from _read_sample(piece.path, sample, text_field, consumed())
        yield from aside
        aside.clear()
    yield from aside
    yield from _end_of_tar(piece.path, blocks, damage)


def _read_sample(path: str, sample: dict[str, Any], text_field: str, consumed: int) -> Iterator[Document | Problem]:
    chosen, *others = (extension for extension in READ if extension in sample)
    for extension in (chosen, *others):
        where, payload = f"{path}, member {sample['__key__']}.{extension}", sample[extension]
        if extension == chosen:
            yield from _read_member(payload, extension, where, text_field, consumed)
        elif extension == "jsonl" or isinstance(parse_record(payload, where, text_field, consumed), Document):
            yield Problem(UNUSED_TEXT, where, f"the sample's text is its .{chosen} member")


def _read_member(
    payload: bytes, extension: str, where: str, text_field: str, consumed: int
) -> Iterator[Document | Problem]:
    payload = payload.removeprefix(codecs.BOM_UTF8)
    if extension == "txt":
        yield parse_text(payload, where, consumed)
    elif extension == "json":
        yield parse_record(payload, where, text_field, consumed)
    else:
        lines = [(number, line) for number, line in enumerate(payload.split(b"\n"), 1) if line.strip()]
        if not lines:
            yield Problem("empty document", where, "it holds no text")
        for number, line in lines:
            yield parse_record(line.strip(), f"{where}, line {number}", text_field, consumed)


def _end_of_tar(path: str, blocks: "_Blocks", damage: list[str]) -> Iterator[Problem]:
    """What is wrong with a tar that the library has read; reads what is left of it."""
    stopped, last = blocks.offset, blocks.last
    behind = None
    while block := blocks.read(TAR_BLOCK):
        behind = blocks.offset - len(block) if behind is None and any(block) else behind
    if isinstance(blocks.failure, OSError):
        raise blocks.failure
    where = f"{path}, byte {stopped}"
    if blocks.failure is not None:
        yield Problem("damaged archive", where, f"{blocks.failure}; what follows is lost")
    elif not blocks.offset:
        yield Problem("empty file", path, "it holds no document")
    elif damage:
        yield Problem("damaged archive", where, f"{damage[0]}; what follows is lost")
    elif any(last) or len(last) < TAR_BLOCK:
        what = "no readable header" if last else "it ends without the mark of its end"
        yield Problem("damaged archive", where, f"{what}; what follows is lost")
    elif behind is not None:
        lost = "more follows behind the end of the tar, another tar perhaps: it is lost"
        yield Problem("damaged archive", f"{path}, byte {behind}", lost)


class _Blocks:
    """The bytes of a tar, at most a block a call: of what is taken, the last is the block that the reader stopped at. A
    failure of the storage, or of decompression, ends them."""

    def __init__(self, content: BinaryIO) -> None:
        self._content, self._ahead = content, memoryview(b"")
        self.offset = 0
        """Bytes taken."""
        self.last = b""
        """What the last call gave, nothing at the end."""
        self.failure: OSError | DamagedArchiveError | None = None

    def __str__(self) -> str:
        return f"byte {self.offset}"  # the library ends its messages with it

    def read(self, size: int) -> bytes:
        if not self._ahead and self.failure is None:
            try:
                self._ahead = memoryview(self._content.read(ARCHIVE_CHUNK))
            except (OSError, DamagedArchiveError) as error:
                self.failure = error
        self.last = bytes(self._ahead[: min(size, TAR_BLOCK)])
        self._ahead = self._ahead[len(self.last) :]
        self.offset += len(self.last)
        return self.last


class _Prefixed:
    """A stream of which the first bytes were read."""

    def __init__(self, first: bytes, rest: BinaryIO) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int) -> bytes:
        first, self._first = self._first[:size], self._first[size:]
        return first + self._rest.read(size - len(first))


def _unpacked(content: BinaryIO) -> BinaryIO:
    """A tar, decompressed if it begins as an archive does."""
    try:
        first = content.read(TAR_BLOCK)
    except DamagedArchiveError:
        return content  # the next call says it again
    compression = next((kind for magic, kind in MAGIC.items() if first.startswith(magic)), "")
    return inflate(cast("BinaryIO", _Prefixed(first, content)), compression)


@contextmanager
def open_command(path: str) -> Iterator[BinaryIO]:
    """The output of a shell command, `pipe:COMMAND`, as the library runs it.

    Raises:
        OSError: it failed, at the latest at the end.
        ValueError: the library is told not to run commands (WDS_SECURE).
    """
    try:
        pipe = gopen_pipe(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    assert isinstance(pipe, Pipe)
    try:
        yield cast("BinaryIO", pipe)
        pipe.close()
    except BaseException as error:
        status = pipe.proc.poll()
        pipe.proc.kill()  # one that is left in the middle would be waited for
        with suppress(OSError):
            pipe.close()
        if isinstance(error, OSError) and status:
            raise ChildProcessError(f"{path}: its command ended with exit code {status}") from None
        raise
