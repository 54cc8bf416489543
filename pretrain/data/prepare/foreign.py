"""Foreign tars: indexes and a manifest for a folder of WebDataset tars of text that somebody else made.

A sample is the members whose names agree up to the first dot. Its text is its `.txt` member or, without one, the string
"text" of the object in its `.json` member. Members that hold no text are passed over and counted as "other member".
Whatever does hold text and does not become a document is named, in `problems.txt`: a second text of a sample, a member
of another kind of text, a link, a tar behind the end of a tar, a compressed tar. The tars themselves are not
touched. Cost: two passes of reading over each, one for the members and one for the sha256; memory of one document and
the index of one tar.
"""

import hashlib
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
from webdataset.tariterators import base_plus_ext

from pretrain.data.manifest import Header, ShardRow, write_manifest
from pretrain.data.prepare.claim import IDENTITY_NAME
from pretrain.data.prepare.records import Document, Problem, parse_record, parse_text
from pretrain.data.prepare.samples import PACKED, TEXT_KINDS, UNUSED_TEXT, member_kind
from pretrain.data.prepare.units import PROBLEMS_NAME, Advance, Report, Started
from pretrain.data.shards import EXTENSIONS, INDEX_DTYPE, TAR_BLOCK, text_hash, write_index
from pretrain.storage import naming, write_atomically

OTHER_MEMBER = "other member"
PACKED_TARS = (".tgz", ".txz", *(f".tar{suffix}" for suffix in PACKED))
IndexRow = tuple[int, int, int, int, int]


def index_folder(folder: Path, report: Report = lambda event: None, *, strict: bool = False) -> Header:
    """Write the index of every *.tar in a folder, and the manifest. Can be repeated.

    Args:
        report: receives progress and bad members.
        strict: the first bad member is an error.

    Returns:
        The header of the manifest; members that are not text count among its problems as "other member".

    Raises:
        ValueError: if there are no tars or no text in them, if the folder is one that `prepare` made, or as `strict`
            says.
        OSError: a file cannot be read or written.
    """
    with naming(folder):
        names = os.listdir(folder)
    if IDENTITY_NAME in names:
        raise ValueError(f"{folder}: was made by tools/prepare_data.py and has its indexes already")
    tars = sorted(folder / name for name in names if name.endswith(".tar"))
    hint = "compressed ones must be unpacked to .tar: an index needs to seek"
    if not tars:
        raise ValueError(f"{folder}: no .tar files to index ({hint})")
    report(Started(sum(tar.stat().st_size for tar in tars), 0))
    problems: Counter[str] = Counter()
    lines: list[str] = []

    def on_problem(problem: Problem) -> None:
        problems[problem.reason] += 1
        if problem.reason != OTHER_MEMBER:
            if strict:
                raise ValueError(str(problem))
            lines.append(f"{problem}\n")
            report(problem)

    for name in sorted(names):
        if name.lower().endswith((".tar", *PACKED_TARS)) and not name.endswith(".tar"):
            on_problem(Problem("not a .tar", str(folder / name), hint))
    rows: list[ShardRow] = []
    for tar in tars:
        index: list[IndexRow] = []
        for item in _read_tar(tar):
            if isinstance(item, Problem):
                on_problem(item)
            else:
                index.append(item)
        if index:
            rows.append(_finish_tar(tar, index))
        report(Advance(tar.stat().st_size, len(index)))
    if lines:
        write_atomically(folder / PROBLEMS_NAME, "".join(lines).encode())
    if not rows:
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(problems.items()))
        raise ValueError(f"{folder}: its tars hold no text ({counts})")
    return write_manifest(folder, Header(kind="text", problems=dict(sorted(problems.items()))), rows)


def _finish_tar(tar: Path, index: list[IndexRow]) -> ShardRow:
    index_sha256 = write_index(tar.parent, tar.name, np.array(index, dtype=INDEX_DTYPE))
    with naming(tar), tar.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardRow(
        shard=tar.name, documents=len(index), tokens=None, bytes=tar.stat().st_size, sha256=sha256,
        index_sha256=index_sha256,
    )  # fmt: skip


def _read_tar(path: Path) -> Iterator[IndexRow | Problem]:
    """Index rows of the documents of a tar, and what is wrong with it."""
    with naming(path), path.open("rb") as file:
        size = path.stat().st_size
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it does not own `file`
        except tarfile.TarError as error:
            yield Problem("damaged archive", str(path), str(error))
            return
        try:
            for _, group in groupby(_members(tar), key=lambda member: base_plus_ext(member.name)[0] or member.name):
                members = list(group)
                regular = [member for member in reversed(members) if member.isreg()]
                texts = {extension: member for member in regular if (extension := _extension(member))}
                chosen = texts.get("txt") or texts.get("json")
                yield from (_passed_over(path, tar, member) for member in members if member is not chosen)
                if chosen is not None:
                    yield _read_member(path, tar, chosen)
        except tarfile.TarError as error:
            yield Problem("damaged archive", f"{path}, byte {tar.offset}", f"{error}; what follows is lost")
            return
        # tarfile takes a header that it cannot read for the end.
        file.seek(tar.offset)
        if tar.offset > size or any(file.read(TAR_BLOCK)):
            lost = "no readable header; what follows is lost"
            yield Problem("damaged archive", f"{path}, byte {tar.offset}", lost)
        elif (behind := _find_content(file)) is not None:
            lost = "more follows behind the end of the tar, another tar perhaps: it is lost"
            yield Problem("damaged archive", f"{path}, byte {behind}", lost)


def _find_content(file: BinaryIO) -> int | None:
    """Place of the first block from here on that is not all zeros, if there is one."""
    while block := file.read(TAR_BLOCK):
        if any(block):
            return file.tell() - len(block)
    return None


def _passed_over(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Problem:
    """What is said of a member that is not its sample's text."""
    where, kind = f"{path}, member {member.name}", member_kind(member.name)
    if not member.isreg():
        return Problem("not a file", where, "a link or device; its content is not read")
    if member.name.lower().endswith(".json") and not isinstance(_read_member(path, tar, member, "json"), tuple):
        return Problem(OTHER_MEMBER, where, "it holds no text")
    if kind in TEXT_KINDS:
        return Problem(UNUSED_TEXT, where, "a sample's text is its .txt member, or its .json member, and no other")
    return Problem(OTHER_MEMBER, where, "it is not the sample's text")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All but the folders in a tar, without the list of all of them that `tarfile` gathers."""
    while (member := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - public, but not in the stubs
        if not member.isdir():
            yield member


def _extension(member: tarfile.TarInfo) -> str:
    return (base_plus_ext(member.name)[1] or "").lower()


def _read_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str = "") -> IndexRow | Problem:
    """The index row of a member; `extension`: txt or json, unless it is that of its name."""
    where = f"{path}, member {member.name}"
    file = tar.extractfile(member)
    assert file is not None
    payload = file.read()
    if len(payload) != member.size:
        return Problem("damaged archive", where, f"only {len(payload)} of {member.size} bytes are there")
    extension = extension or _extension(member)
    document = parse_text(payload, where, 0) if extension == "txt" else parse_record(payload, where, "text", 0)
    if not isinstance(document, Document):
        return document
    return member.offset_data, member.size, text_hash(document.utf8), zlib.crc32(payload), EXTENSIONS.index(extension)
