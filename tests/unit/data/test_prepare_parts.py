"""Preparation in parts: for any number of parts, order and kill the folder is bytewise that of one process; a merge
says what it misses."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.claim import Part
from pretrain.data.prepare.prepare import PrepareSettings, merge_parts, prepare, prepare_part
from pretrain.data.tokenizers.train import train_tokenizer
from tests.support.killing import in_fork, killed_at_write

ROOT = Path(__file__).parents[3]
UNIT_BYTES = 200


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    path.write_bytes(train_tokenizer(["loops round the ring"], vocab_size=285)[0])
    return path


@pytest.fixture(scope="module", autouse=True)
def small_units() -> Iterator[None]:
    """Small inputs give several units, as big ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.data.prepare.prepare.MIN_UNIT_BYTES", UNIT_BYTES)
        yield


def write_inputs(folder: Path, texts: list[str]) -> Path:
    """A plain file, which is cut into units, and archives and files, which share them; a bad line and an empty file
    among them."""
    folder.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    half = len(lines) // 2
    (folder / "a.jsonl").write_text("".join(lines[:half]) + "broken\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[half:]).encode(), mtime=0))
    (folder / "c.txt").write_text("")
    for number in range(3):
        (folder / f"d{number}.txt").write_text(f"{number} " + "loop " * 30)
    return folder


def settings_of(inputs: Path, output: Path, tokenizer: Path | None, **changes: object) -> PrepareSettings:
    return PrepareSettings(inputs=(f"{inputs}/*",), output=output, tokenizer=tokenizer, **{"num_workers": 0, **changes})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(
    texts=st.lists(st.text("abc \n", max_size=80), min_size=1, max_size=30),
    num_parts=st.integers(1, 9),
    shard_documents=st.none() | st.integers(1, 4),
    as_text=st.booleans(),
    data=st.data(),
)
@hypothesis_settings(deadline=None, max_examples=12)
def test_merged_parts_are_the_result_of_one_process(
    tokenizer_path: Path,
    texts: list[str],
    num_parts: int,
    shard_documents: int | None,
    as_text: bool,
    data: st.DataObject,
) -> None:
    """In any order of the parts, with one of them killed at any write and run again."""
    order = data.draw(st.permutations(range(1, num_parts + 1)))
    killed, at_write = data.draw(st.sampled_from(order)), data.draw(st.integers(1, 12))
    with TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_inputs(folder / "in", texts)
        tokenizer = None if as_text else tokenizer_path
        whole, parted = (
            settings_of(inputs, folder / output, tokenizer, shard_documents=shard_documents)
            for output in ("whole", "parted")
        )
        prepare(whole)
        for number in order:
            part = Part(number, num_parts)
            if number == killed:
                killed_at_write(at_write, lambda part=part: prepare_part(parted, part))
            prepare_part(parted, part)
        assert not merge_parts(parted, num_parts).reused
        assert files(parted.output) == files(whole.output)
        assert merge_parts(parted, num_parts).reused


def test_a_merge_names_the_parts_that_are_missing(tmp_path: Path, tokenizer_path: Path) -> None:
    texts = [f"{number} round the ring" for number in range(200)]
    settings = settings_of(write_inputs(tmp_path / "in", texts), tmp_path / "out", tokenizer_path)
    assert prepare_part(settings, Part(2, 6)).num_units > 1
    assert killed_at_write(14, lambda: prepare_part(settings, Part(6, 6)))
    with pytest.raises(ValueError, match=r"out: not finished, of 6 parts: 1,3-6; run them, then merge again$"):
        merge_parts(settings, 6)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    for number in (1, 3, 4, 5, 6):
        done = prepare_part(settings, Part(number, 6))
        assert (done.resumed_units > 0) == (number == 6)
    merge_parts(settings, 6)
    assert Manifest.open(tmp_path / "out").header.num_documents == len(texts) + 3


def test_parts_of_another_division_go_on_with_the_same_units(tmp_path: Path, tokenizer_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", [f"{number} round the ring" for number in range(60)])
    whole, parted = (
        settings_of(inputs, tmp_path / "whole", tokenizer_path),
        settings_of(inputs, tmp_path / "out", tokenizer_path),
    )
    prepare(whole)
    prepare_part(parted, Part(1, 2))
    done = [prepare_part(parted, Part(number, 3)) for number in (1, 2, 3)]
    assert sum(part.resumed_units for part in done) > 2
    merge_parts(parted, 3)
    assert files(parted.output) == files(whole.output)


def test_parts_of_other_settings_are_refused(tmp_path: Path, tokenizer_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", ["round the ring"] * 30)
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(["another text for another tokenizer"], vocab_size=285)[0])
    settings = settings_of(inputs, tmp_path / "out", tokenizer_path)
    prepare_part(settings, Part(1, 2))
    for changed, message in [
        (settings_of(inputs, tmp_path / "out", other), "was prepared with tokenizer_sha256="),
        (
            settings_of(inputs, tmp_path / "out", tokenizer_path, shard_documents=3),
            r"was prepared with shard_documents=None \(now 3\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare_part(changed, Part(2, 2))
        with pytest.raises(ValueError, match=message):
            merge_parts(changed, 2)
    (inputs / "e.txt").write_text("more")
    with pytest.raises(ValueError, match="another number of input files"):
        prepare_part(settings, Part(2, 2))


def test_parts_that_run_at_the_same_time_share_the_folder(tmp_path: Path, tokenizer_path: Path) -> None:
    """Each in a process of its own, all claiming the empty folder at once."""
    texts = [f"{number} round the ring " * 5 for number in range(80)]
    inputs = write_inputs(tmp_path / "in", texts)
    whole, parted = (
        settings_of(inputs, tmp_path / "whole", tokenizer_path),
        settings_of(inputs, tmp_path / "out", tokenizer_path),
    )
    prepare(whole)
    with ThreadPoolExecutor(4) as pool:
        work = [lambda number=number: prepare_part(parted, Part(number, 4)) for number in range(1, 5)]
        assert list(pool.map(in_fork, work)) == [0] * 4
    merge_parts(parted, 4)
    assert files(parted.output) == files(whole.output)


def test_a_part_keeps_itself_and_runs_of_all_out(tmp_path: Path, tokenizer_path: Path) -> None:
    settings = settings_of(write_inputs(tmp_path / "in", ["round the ring"] * 30), tmp_path / "out", tokenizer_path)
    tried = count()

    def try_others(event: object) -> None:
        if next(tried) == 1:
            for other in (lambda: prepare(settings), lambda: prepare_part(settings, Part(1, 2))):
                with pytest.raises(ValueError, match="another run is preparing this folder"):
                    other()
            prepare_part(settings, Part(2, 2))

    prepare_part(settings, Part(1, 2), try_others)
    assert next(tried) > 2
    merge_parts(settings, 2)


def test_a_unit_that_two_runs_make_is_kept_once(tmp_path: Path, tokenizer_path: Path) -> None:
    """A job that Slurm thought lost goes on beside the one that replaced it, on a node where the lock does not hold."""
    settings = settings_of(write_inputs(tmp_path / "in", ["round the ring"] * 30), tmp_path / "out", tokenizer_path)
    tried = count()

    def overtake(event: object) -> None:
        if next(tried) == 1:
            prepare_part(settings, Part(1, 3))  # another division, the same first unit

    prepare_part(settings, Part(1, 2), overtake)
    prepare_part(settings, Part(2, 2))
    assert not list((tmp_path / "out").rglob("*.tmp"))
    merge_parts(settings, 2)
    assert Manifest.open(tmp_path / "out").header.num_documents == 33


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/prepare_data.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_the_tool_does_parts_and_merges_them(tmp_path: Path, tokenizer_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", ["round the ring"] * 30)
    arguments = (
        "--input",
        f"{inputs}/*",
        "--tokenizer",
        tokenizer_path,
        "--output",
        tmp_path / "out",
        "--workers",
        "0",
    )
    first, early, second, merged = (
        run_tool(*arguments, *how) for how in (("--part", "2/2"), ("--merge", "2"), ("--part", "1/2"), ("--merge", "2"))
    )
    assert (first.returncode, second.returncode, merged.returncode) == (0, 0, 0), (
        first.stderr + second.stderr + merged.stderr
    )
    assert first.stdout.endswith("out: part 2/2 is finished: 0 units, 0 of them before\n")
    assert second.stdout.endswith("out: part 1/2 is finished: 1 units, 0 of them before\n")
    assert (early.returncode, early.stderr) == (
        2,
        f"error: {tmp_path}/out: not finished, of 2 parts: 1; run them, then merge again\n",
    )
    assert "33 documents, " in merged.stdout and "(merged from 2 parts)" in merged.stdout


@pytest.mark.parametrize("value", ["0/2", "3/2", "2"])
def test_the_tool_refuses_impossible_parts(value: str) -> None:
    done = run_tool("--input", "x.txt", "--keep-text", "--output", "out", f"--part={value}")
    assert done.returncode == 2
    assert f"needs a part and their number, as 3/16, got '{value}'" in done.stderr
