"""WebDataset tars as input: what becomes a document, what is named, what is refused; files, URLs, braces, commands."""

import functools
import gzip
import io
import json
import lzma
import pickle
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import zstandard

from pretrain.data.prepare.documents import find_inputs, read_documents, split_file
from pretrain.data.prepare.inputs import find_files
from pretrain.data.prepare.prepare import PrepareSettings, prepare
from pretrain.data.prepare.records import Problem
from tests.support.corpus import write_tar

ROOT = Path(__file__).parents[3]
MEMBERS = {
    "a/0.txt": "\ufeffone äöü".encode(),
    "a/0.json": b'{"width": 3}',
    "a/0.jpg": b"\xff\xd8",
    "a/1.JSON": b'{"text": "two", "id": 7}',
    "a/2.jsonl": b'{"text": "three"}\r\n\n{"text": "four"}\n',
    "a/3.txt": b"five " * 400,
}
TEXTS = ["one äöü", "two", "three", "four", "five " * 400]
WRITERS = {
    ".tar": bytes, ".tar.gz": gzip.compress, ".tgz": gzip.compress, ".tar.xz": lzma.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
}  # fmt: skip


def read(*patterns: str) -> tuple[list[str], list[str]]:
    """Texts of inputs and problems, as lines."""
    texts, problems = [], []
    for file in find_inputs(patterns):
        (piece,) = split_file(file, 1)
        for item in read_documents(piece, "text"):
            if isinstance(item, Problem):
                problems.append(str(item))
            else:
                assert 0 <= item.consumed <= piece.size
                texts.append(item.text)
    return texts, problems


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", MEMBERS)


@pytest.mark.parametrize("suffix", WRITERS)
def test_samples_of_any_compression_become_documents(tmp_path: Path, tar: Path, suffix: str) -> None:
    """Whatever the name says of it: a second one ends in .tar."""
    for name in (f"packed{suffix}", "misnamed.tar"):
        (tmp_path / name).write_bytes(WRITERS[suffix](tar.read_bytes()))
        assert read(f"{tmp_path}/{name}") == (TEXTS, [])


def test_what_holds_text_and_is_not_read_is_named(tmp_path: Path) -> None:
    members = {
        "README": b"about", "a.txt": b"one", "a.v2.txt": b"two", "a.json": b'{"text": "three"}', "a.jsonl": b"{}",
        "b.md": b"four", "c.jpg": b"\xff", "__meta__/x.txt": b"of the library", "d.txt.gz": b"five", "e.txt": b" ",
        "f.json": b'{"txt": 1}', "g.jsonl": b"\n",
    }  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        for name in ("h.txt", "h.txt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"six"))
        link = tarfile.TarInfo("i.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    texts, problems = read(str(path))
    assert texts == ["one", "six"]
    places = {line.removeprefix(f"{path}, member ").partition(": ")[0]: line.split(": ")[1] for line in problems}
    twice = str(path)
    assert places == {
        "README": "unused text", "a.v2.txt": "unused text", "a.json": "unused text", "a.jsonl": "unused text",
        "b.md": "unused text", "d.txt.gz": "unused text", "e.txt": "empty document", "f.json": "missing field",
        "g.jsonl": "empty document", twice: "unused text",
    }  # fmt: skip


class Harmful:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "PTH", "pt", "pkl.gz"])
def test_a_pickle_is_refused_and_never_read(tmp_path: Path, suffix: str) -> None:
    trace = tmp_path / "trace"
    path = write_tar(tmp_path / "a.tar", {f"a.{suffix}": pickle.dumps(Harmful(trace)), "b.txt": b"one"})
    texts, problems = read(str(path))
    assert texts == ["one"]
    assert problems == [f"{path}, member a.{suffix}: pickled member: reading a pickle can run code: it is refused"]
    assert not trace.exists()


def test_a_cut_tar_keeps_what_came_before(tmp_path: Path, tar: Path) -> None:
    data = tar.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(1, len(data), 256):
        tar.write_bytes(data[:cut])
        texts, problems = read(str(tar))
        assert texts == TEXTS[: len(texts)]
        if cut < end + 512:
            assert len(problems) == 1, cut
            assert ": damaged archive: " in problems[0]
        else:
            assert (texts, problems) == (TEXTS, [])
    packed = gzip.compress(data)
    (tmp_path / "b.tar.gz").write_bytes(packed[: len(packed) // 2])
    texts, problems = read(f"{tmp_path}/b.tar.gz")
    assert texts == TEXTS[: len(texts)]
    assert problems[0].endswith("damaged archive: it ends in the middle; what follows is lost")


def test_a_header_that_cannot_be_read_is_not_the_end(tmp_path: Path, tar: Path) -> None:
    data = tar.read_bytes()
    header = data.index(b"a/2.jsonl")
    tar.write_bytes(data[:header] + b"?" + data[header + 1 :])
    assert read(str(tar)) == (
        TEXTS[:2], [f"{tar}, byte {header + 512}: damaged archive: no readable header; what follows is lost"]
    )  # fmt: skip
    tar.write_bytes(data * 2)
    lost = "more follows behind the end of the tar, another tar perhaps: it is lost"
    assert read(str(tar)) == (TEXTS, [f"{tar}, byte {len(data)}: damaged archive: {lost}"])
    tar.write_bytes(b"no tar at all")
    assert [line.split(": ")[1] for line in read(str(tar))[1]] == ["damaged archive"]


def test_no_damage_is_a_traceback(tmp_path: Path, tar: Path) -> None:
    data, draw = tar.read_bytes(), random.Random(0)
    headers = [place for place in range(0, len(data), 512) if data[place : place + 2] == b"a/"]
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 3, 20))):
            damaged[draw.choice(headers) + draw.randrange(512)] = draw.randrange(256)
        header = draw.choice(headers)  # a checksum that is right again, so that the damage is met behind it
        damaged[header + 148 : header + 156] = b" " * 8
        damaged[header + 148 : header + 156] = b"%06o\0 " % sum(damaged[header : header + 512])
        tar.write_bytes(damaged)
        read(str(tar))


def test_a_tar_that_is_made_to_break_its_reader_is_named(tmp_path: Path) -> None:
    """Names of names of names, and a member of 32 TiB of holes."""
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 5
    nested = (link.tobuf(tarfile.GNU_FORMAT) + b"abcd".ljust(512, b"\0")) * 3000
    holes = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.GNU_FORMAT))
    holes[156:157], holes[386:410] = tarfile.GNUTYPE_SPARSE, b"%011o\0%011o\0" % (0, 0)
    holes[483:495], holes[148:156] = b"\x80" + (1 << 45).to_bytes(11, "big"), b" " * 8
    holes[148:156] = b"%06o\0 " % sum(holes)
    for data in (nested, bytes(holes)):
        path = tmp_path / "a.tar"
        path.write_bytes(data + bytes(1024))
        texts, (problem,) = read(str(path))
        assert texts == []
        assert ": damaged archive: " in problem


def test_braces_are_expanded_and_a_file_of_that_name_is_itself(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"s-{number:03d}.tar", {"a.txt": str(number).encode()})
    (tmp_path / "x{a,b}.txt").write_text("braces")
    assert read(f"{tmp_path}/s-{{000..002}}.tar") == (["0", "1", "2"], [])
    assert read(f"{tmp_path}/x{{a,b}}.txt") == (["braces"], [])
    with pytest.raises(ValueError, match=r"s-003\.tar: no such file"):
        find_inputs([f"{tmp_path}/s-{{000..003}}.tar"])
    with pytest.raises(ValueError, match=r"s-\{000: Unbalanced braces"):
        find_inputs([f"{tmp_path}/s-{{000"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as here:
        threading.Thread(target=here.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{here.server_address[1]}"
        here.shutdown()


def test_tars_behind_urls_are_read(tmp_path: Path, tar: Path, server: str) -> None:
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    assert read(f"{server}/{{a.tar,b.tar.gz}}") == (TEXTS * 2, [])
    fsspec.filesystem("memory").pipe_file("/tars/a-0.tar", tar.read_bytes())
    assert read("memory://tars/a-{0..0}.tar") == (TEXTS, [])


def test_a_command_that_the_user_wrote_is_run(tmp_path: Path, tar: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    assert read(f"pipe:cat {tmp_path}/{{a.tar,b.tar.gz}}") == (TEXTS * 2, [])
    assert read(f"pipe:gzip -dc < {tmp_path}/b.tar.gz") == (TEXTS, [])


@pytest.mark.parametrize(("command", "code"), [("cat {}; exit 3", 3), ("head -c 700 {}; exit 4", 4), ("exit 5", 5)])
def test_a_command_that_fails_is_no_short_tar(tar: Path, command: str, code: int) -> None:
    command = f"pipe:{command.format(tar)}"
    with pytest.raises(ChildProcessError, match=f"its command ended with exit code {code}") as caught:
        read(command)
    assert str(caught.value).startswith(command)


def test_a_command_is_never_built_from_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, and names that a data set's page gives, may be called as commands are: they are files."""
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "pipe:touch trace;.tar", {"a.txt": b"one"})
    (file,) = find_files(["pipe:touch trace;.tar"])
    (piece,) = split_file(file, 1)
    assert [item.text for item in read_documents(piece, "text") if not isinstance(item, Problem)] == ["one"]
    monkeypatch.setattr(
        "pretrain.data.prepare.documents.hub_files", lambda name, split: ["pipe:touch trace;.tar", "pipe:touch trace"]
    )
    with pytest.raises(ValueError, match="pipe:touch trace: no such file"):
        find_inputs([], dataset="theirs", split="train")
    assert not (tmp_path / "trace").exists()


def test_prepared_tars_are_what_the_same_lines_are(tmp_path: Path, tar: Path) -> None:
    """By two workers; files, braces and a command."""
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3))
    for name in ("b.tar.gz", "c.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(tar.read_bytes()))
    made = []
    patterns = (str(tar), f"{tmp_path}/{{b,c}}.tar.gz"), (f"pipe:cat {tmp_path}/{{a.tar,b.tar.gz,c.tar.gz}}",)
    for number, (inputs, workers) in enumerate(
        [((str(tmp_path / "lines.jsonl"),), 0), (patterns[0], 0), (patterns[1], 2)]
    ):
        settings = PrepareSettings(
            inputs=inputs, output=tmp_path / f"out-{number}", tokenizer=None, num_workers=workers, shard_documents=5
        )
        header = prepare(settings).header
        assert header.problems == {}
        shards = sorted(settings.output.glob("*.tar"))
        made.append(b"".join(shard.read_bytes() for shard in shards))
    assert made[0] == made[1] == made[2]


def test_a_failing_command_is_one_line(tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools/prepare_data.py"), "--keep-text", "--output", str(tmp_path / "out")]
    done = subprocess.run([*tool, "--workers", "0", "--input", "pipe:exit 7"], capture_output=True, text=True)
    assert done.returncode not in (0, 2)  # the command may do better the next time
    assert done.stderr.strip().splitlines()[-1].endswith("pipe:exit 7: its command ended with exit code 7")
    assert "Traceback" not in done.stderr
