"""Foreign tars: what holds text and does not become a document has its name and reason."""

import tarfile
from pathlib import Path

import pytest

from pretrain.data.prepare.foreign import index_folder
from pretrain.data.prepare.records import Problem
from pretrain.data.prepare.units import Event
from tests.support.corpus import write_tar


def test_text_in_foreign_tars_that_is_not_used_is_named(tmp_path: Path) -> None:
    """A name with a second dot, a second text, a link, a tar behind a tar, a compressed tar."""
    members = {"a.txt": b"one", "a.v2.txt": b"two", "a.json": b'{"width": 3}', "b.md": b"three", "c.jpg": b"\xff"}
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("d.txt")
        link.type, link.linkname = tarfile.LNKTYPE, "a.txt"
        tar.addfile(link)
    behind = path.stat().st_size
    path.write_bytes(path.read_bytes() + write_tar(tmp_path / "other", {"e.txt": b"four"}).read_bytes())
    (tmp_path / "b.tar.gz").write_bytes(b"")
    (tmp_path / "c.TAR").write_bytes(b"")
    events: list[Event] = []
    header = index_folder(tmp_path, events.append)
    assert header.num_documents == 1
    assert header.problems == {
        "damaged archive": 1, "not a .tar": 2, "not a file": 1, "other member": 2, "unused text": 2
    }  # fmt: skip
    named = [str(event).partition(": ")[0] for event in events if isinstance(event, Problem)]
    places = ["member a.v2.txt", "member b.md", "member d.txt", f"byte {behind}"]
    assert named == [f"{tmp_path}/b.tar.gz", f"{tmp_path}/c.TAR", *(f"{path}, {place}" for place in places)]
    lines = (tmp_path / "problems.txt").read_text().splitlines()
    assert lines == [str(event) for event in events if isinstance(event, Problem)]
    with pytest.raises(ValueError, match=r"b\.tar\.gz: not a \.tar: compressed ones must be unpacked"):
        index_folder(tmp_path, strict=True)
