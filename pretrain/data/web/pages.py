"""Pages of web archives: the records of WARC (HTML) and WET (text) files as datatrove's documents.

datatrove's own reader is not used: it guesses the type of a WET record with libmagic (a system library), which loses
text that begins like source code; it drops what it cannot decode without counting it; and a cut archive ends its task.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from trafilatura.utils import decode_file
from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from pretrain.data.prepare.archives import DamagedArchiveError, open_content
from pretrain.schema.choice import choose

Kind = Literal["warc", "wet"]
RECORD_TYPES = {"warc": "response", "wet": "conversion"}
HTML_TYPES = ("text/html", "application/xhtml+xml")


def archive_kind(path: str) -> Kind:
    """What a file is, by its name: `x.warc.wet.gz` is a WET file.

    Raises:
        ValueError: neither.
    """
    name = path.lower().removesuffix(".gz")
    if name.endswith(".wet"):
        return "wet"
    if name.endswith(".warc"):
        return "warc"
    raise ValueError(f"{path}: not a .warc or .wet file (plain or with .gz)")


class _Prompt:
    """Returns the bytes that have arrived, however few: those before the damage of an archive are not lost with it."""

    def __init__(self, content: BinaryIO) -> None:
        self.read = content.read1 if isinstance(content, io.BufferedReader) else content.read


def _records(content: BinaryIO) -> Iterator[Any]:
    records = ArchiveIterator(_Prompt(content), verify_http=False)
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except AttributeError:  # what warcio makes of a record without an address
            raise ArchiveLoadFailed("a record without an address") from None
        if record.format != "warc":
            raise ArchiveLoadFailed("not a WARC record")
        yield record


class ReadPages(PipelineStep):
    """Reads every `world_size`th file of a list. Counts what it gives up: records that are not HTML or empty, archives
    that break off."""

    type: str = "READ"
    name: str = "Pages of the archives"

    def __init__(self, paths_file: Path, kind: Kind) -> None:
        """Args: paths_file: a path or URL a line; kind: of all the files."""
        super().__init__()
        self.paths_file, self.record_type = paths_file, choose(RECORD_TYPES, kind, "kind")

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for path in self.paths_file.read_text().splitlines()[rank::world_size]:
            self.stat_update("input_files")
            try:
                with open_content(path) as content:
                    yield from self._pages(path, content)
            except (DamagedArchiveError, ArchiveLoadFailed):
                self.stat_update("total", "dropped", "dropped_rest_of_a_damaged_archive")

    def _pages(self, path: str, content: BinaryIO) -> Iterator[Document]:
        for number, record in enumerate(_records(content)):
            if record.rec_type != self.record_type:
                continue  # what the crawler asked and noted
            payload = record.content_stream().read()
            # bytes that the record promises and the file does not hold, or no promise
            if getattr(record.raw_stream, "limit", True):
                raise DamagedArchiveError("it ends in the middle")
            self.stat_update("total")
            text = TEXTS[self.record_type](record, payload)
            if text is None or not text.strip():
                self.stat_update("dropped", "dropped_not_HTML" if text is None else "dropped_empty")
                continue
            self.stat_update("forwarded")
            url = record.rec_headers.get_header("WARC-Target-URI") or ""
            yield Document(text=text, id=f"{path}#{number}", metadata={"url": url})


def _plain_text(_: Any, payload: bytes) -> str:
    return payload.decode("utf-8", errors="replace")


def _html(record: Any, payload: bytes) -> str | None:
    """The HTML of a response; None if it is of another type."""
    header = (record.http_headers and record.http_headers.get_header("Content-Type")) or ""
    content_type, _, parameters = header.partition(";")
    content_type = record.rec_headers.get_header("WARC-Identified-Payload-Type") or content_type
    return _decode(payload, parameters) if content_type.strip().lower() in HTML_TYPES else None


TEXTS: dict[str, Callable[[Any, bytes], str | None]] = {"response": _html, "conversion": _plain_text}
"""Text of a record by its type, HTML or plain."""


def _decode(html: bytes, parameters: str) -> str:
    """HTML in the encoding that the server named, or else in the one it looks like."""
    charset = parameters.lower().partition("charset=")[2].strip(" \"';")
    try:
        return html.decode(charset or "utf-8")
    except (LookupError, UnicodeDecodeError):
        return decode_file(html)
