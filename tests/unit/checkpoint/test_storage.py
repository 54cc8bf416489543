"""Checkpoints on a storage that fails or was rearranged: nothing good is lost, nothing bad counts."""

import errno
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.names import list_checkpoints
from pretrain.checkpoint.verify import newest_good, verify
from tests.support.checkpoints import flip, make_store, names, save_steps


def test_a_verdict_of_the_start_is_kept(tmp_path: Path) -> None:
    """A flipped bit shows in the hash alone, which retention does not read: what the start found out counts."""
    save_steps(tmp_path, [10, 20], keep_last=2)
    flip(tmp_path / "step-00000020" / "rank-00000.safetensors")
    for _ in range(2):  # finding out again changes nothing
        reader, _ = newest_good(tmp_path, keep_verdicts=True)
        assert reader is not None and reader.step == 10
    save_steps(tmp_path, [30], nonce="b", keep_last=2)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (10, 20, 30)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("name", ["rank-00000.safetensors", "checkpoint.json", "step-00000030"])
def test_a_call_that_fails_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    """Nothing is removed and no older checkpoint is taken because files cannot be looked at for a moment. The folder is
    listed only where a file is not found."""
    folder = tmp_path / "checkpoints"
    save_steps(folder, [10, 20, 30], keep_last=3)
    before = names(folder)
    fail_calls(monkeypatch, number, name)
    if name == "step-00000030":
        fail_calls(monkeypatch, errno.ENOENT, "checkpoint.json")
    with pytest.raises(OSError, match=rf"{re.escape(os.strerror(number))}: \S*{name}"):
        newest_good(folder)
    (result,) = save_steps(folder, [40], nonce="b", keep_last=2)
    monkeypatch.undo()
    assert result.is_durable and "old checkpoints could not be removed" in result.message
    assert names(folder) == [*before, "step-00000040"]
    assert newest_good(folder)[1] == []


def fail_calls(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    """From now on, no file or folder of this name can be looked at, listed or read."""

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, int) and Path(path).name == name:
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *arguments, **options)

        return wrapped

    for module, function in ((os, "stat"), (os, "listdir"), (io, "open")):
        monkeypatch.setattr(module, function, failing(getattr(module, function)))


def test_a_folder_that_appears_while_someone_looks_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    assert list_checkpoints(folder) == []
    save_steps(folder, [10])
    listing, is_early = os.listdir, iter([True])

    def listdir(path: Path) -> list[str]:
        if next(is_early, False):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return listing(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000010"]


def test_a_checkpoint_moved_to_another_disk_behind_a_link_is_retired_as_a_link(tmp_path: Path) -> None:
    folder, other = tmp_path / "checkpoints", tmp_path / "other"
    save_steps(folder, [10, 20], keep_last=2)
    other.mkdir()
    for name in names(folder):
        (folder / name).rename(other / name)
        (folder / name).symlink_to(other / name)
    reader, problems = newest_good(folder)
    assert reader is not None and (reader.step, problems) == (20, [])
    save_steps(folder, [30], nonce="b", keep_last=2)
    assert names(folder) == ["step-00000020", "step-00000030"]
    assert names(other) == ["step-00000010", "step-00000020"]
    make_store(folder, nonce="c")


def test_a_checkpoint_put_aside_stays_until_its_successor_is_sound(tmp_path: Path) -> None:
    save_steps(tmp_path, [10, 20], keep_last=2)
    (tmp_path / "step-00000020").rename(tmp_path / "step-00000020.replaced")
    (tmp_path / "step-00000020").mkdir()
    make_store(tmp_path, nonce="b")
    reader, problems = newest_good(tmp_path)
    assert reader is not None and reader.step == 20 and len(problems) == 1


@pytest.mark.parametrize("is_good", [True, False])
def test_a_damaged_successor_of_a_checkpoint_put_aside_is_replaced(tmp_path: Path, is_good: bool) -> None:
    """A kill in a replacement, damage, and the same step is saved again: neither folder is in its way."""
    save_steps(tmp_path, [10, 20], keep_last=2)
    put_aside = (tmp_path / "step-00000020").rename(tmp_path / "step-00000020.replaced")
    save_steps(tmp_path / "other", [20])
    (tmp_path / "other" / "step-00000020").rename(tmp_path / "step-00000020")
    (tmp_path / "other").rmdir()
    for folder in (tmp_path / "step-00000020", *([] if is_good else [put_aside])):
        (folder / "checkpoint.json").write_text("damaged")
    (result,) = save_steps(tmp_path, [20], nonce="b", keep_last=2)
    assert result.is_durable, result.message
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    reader, problems = newest_good(tmp_path)
    assert reader is not None and (reader.step, problems) == (20, [])


def test_a_pipe_in_place_of_a_file_is_damage(tmp_path: Path) -> None:
    save_steps(tmp_path, [10])
    (tmp_path / "step-00000010" / "checkpoint.json").unlink()
    os.mkfifo(tmp_path / "step-00000010" / "checkpoint.json")
    assert verify(tmp_path / "step-00000010") == ["checkpoint.json is not a regular file"]


def test_a_rank_whose_part_is_there_does_not_clear_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One failed look of a rank that waits must not cost the others their save."""
    stores = [make_store(tmp_path, rank=rank, world_size=2, asynchronous=rank == 1) for rank in (0, 1)]
    real, looks = Path.stat, []

    def stat(path: Path, **options: Any) -> os.stat_result:
        if threading.current_thread().name == "checkpoint" and ".tmp-" in path.name:
            looks.append(path)
            if len(looks) == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    stores[1].save(10, [Piece(name="x", tensor=torch.ones(4), shape=(8,), start=4)], {})
    while not looks:
        time.sleep(0.001)
    stores[0].save(10, [Piece(name="x", tensor=torch.ones(4), shape=(8,))], {})
    for store in stores:
        store.wait()
    assert names(tmp_path) == ["step-00000010"]


@pytest.mark.parametrize("leftover", ["tmp-a1b2c3.2", "failed-a1b2c3.2", "failed-a1b2c3.2.1.3", "tmp-retired"])
def test_what_a_save_leaves_is_not_the_newest_checkpoint(tmp_path: Path, leftover: str) -> None:
    save_steps(tmp_path / "checkpoints", [500])
    (tmp_path / "checkpoints" / f"step-00001000.{leftover}").mkdir()
    (tmp_path / "checkpoints" / "step-00000500.replaced").mkdir()
    command = [sys.executable, "-m", "pretrain.run.job", "progress", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "step 500\n"


def test_a_first_save_that_cannot_make_its_folder_ends_for_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the note would be is no folder yet either."""
    stores = [make_store(tmp_path / "checkpoints", rank=rank, world_size=2, asynchronous=True) for rank in (0, 1)]
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    fail_first(monkeypatch, os, "mkdir", errno.ESTALE)
    stores[0].save(1, [Piece.whole("x", torch.ones(2))], {})
    stores[0].settle(60)
    monkeypatch.undo()
    stores[1].save(1, [], {})
    stores[1].settle(30)
    problems = [result.problem for store in stores for result in store.poll()]
    assert len(problems) == 2 and all("rank 0: " in problem and "Stale" in problem for problem in problems if problem)


def fail_first(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, error: int) -> None:
    """Let the first call of a function fail."""
    real, calls = getattr(module, function), itertools.count()

    def failing(path: Any, *arguments: Any, **options: Any) -> Any:
        if next(calls) == 0:
            raise OSError(error, os.strerror(error), os.fspath(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(module, function, failing)
