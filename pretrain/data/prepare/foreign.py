"""Foreign tars: indexes and a manifest for a folder of WebDataset tars of text that somebody else made.

A sample is the members whose names agree up to the first dot. Its text is its `.txt` member or, without one, the string
"text" of the object in its `.json` member; other members are passed over and counted. The tars themselves are not
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

from webdataset.tariterators import base_plus_ext

from pretrain.data.manifest import Header, ShardRow, write_manifest
from pretrain.data.prepare.claim import IDENTITY_NAME
from pretrain.data.prepare.documents import Document, Problem, parse_record, parse_text
from pretrain.data.prepare.units import Advance, Report, Started
from pretrain.data.shards import EXTENSIONS, TAR_BLOCK, text_hash, write_index
from pretrain.storage import naming

OTHER_MEMBER = "other member"
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
    if not tars:
        hint = "compressed ones must be unpacked to .tar: an index needs to seek"
        raise ValueError(f"{folder}: no .tar files to index ({hint})")
    report(Started(sum(tar.stat().st_size for tar in tars), 0))
    problems: Counter[str] = Counter()
    rows: list[ShardRow] = []
    for tar in tars:
        index: list[IndexRow] = []
        for item in _read_tar(tar):
            if isinstance(item, tuple):
                index.append(item)
                continue
            problems[item.reason] += 1
            if item.reason != OTHER_MEMBER:
                if strict:
                    raise ValueError(str(item))
                report(item)
        if index:
            rows.append(_finish_tar(tar, index))
        report(Advance(tar.stat().st_size, len(index)))
    if not rows:
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(problems.items()))
        raise ValueError(f"{folder}: its tars hold no text ({counts})")
    return write_manifest(folder, Header(kind="text", problems=dict(sorted(problems.items()))), rows)


def _finish_tar(tar: Path, index: list[IndexRow]) -> ShardRow:
    index_sha256 = write_index(tar.parent, tar.name, index)
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
                texts = {extension: member for member in reversed(members) if (extension := _extension(member))}
                chosen = texts.get("txt") or texts.get("json")
                for member in members:
                    if member is not chosen:
                        yield Problem(OTHER_MEMBER, f"{path}, member {member.name}", "it is not the sample's text")
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


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in a tar, without the list of all of them that `tarfile` gathers."""
    while (member := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - public, but not in the stubs
        if member.isreg():
            yield member


def _extension(member: tarfile.TarInfo) -> str:
    return (base_plus_ext(member.name)[1] or "").lower()


def _read_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> IndexRow | Problem:
    where = f"{path}, member {member.name}"
    file = tar.extractfile(member)
    assert file is not None
    payload = file.read()
    if len(payload) != member.size:
        return Problem("damaged archive", where, f"only {len(payload)} of {member.size} bytes are there")
    extension = _extension(member)
    document = parse_text(payload, where, 0) if extension == "txt" else parse_record(payload, where, "text", 0)
    if not isinstance(document, Document):
        return document
    return member.offset_data, member.size, text_hash(document.utf8), zlib.crc32(payload), EXTENSIONS.index(extension)
