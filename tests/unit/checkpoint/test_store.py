"""Saving, choosing and keeping checkpoints; damage is named in one line and passed over."""

import hashlib
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.names import list_checkpoints
from pretrain.checkpoint.verify import newest_good, verify
from tests.support.checkpoints import flip, make_store, names, save_steps

STATE = {
    "weights/query": torch.arange(24, dtype=torch.bfloat16).reshape(4, 6),
    "adam/step": torch.tensor(3, dtype=torch.int64),
    "data/carried": torch.empty(0, dtype=torch.int64),
    "rng/torch": torch.arange(100, dtype=torch.uint8),
    "master/query": torch.linspace(0, 1, 7, dtype=torch.float64),
}
META = {"tokens_seen": 2**40, "lr": 0.1 + 0.2, "rng": 2**127 + 1, "run": {"name": "α", "parts": [1, None, True]}}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_everything_comes_back(tmp_path: Path, asynchronous: bool) -> None:
    store = make_store(tmp_path, asynchronous=asynchronous)
    store.save(12, [Piece.whole(name, tensor) for name, tensor in STATE.items()], META)
    store.wait()
    (result,) = store.poll()
    assert result.is_durable
    assert result.message.startswith("saved checkpoint of step 12: ")
    assert result.num_bytes == (tmp_path / "step-00000012" / "rank-00000.safetensors").stat().st_size
    assert names(tmp_path / "step-00000012") == ["checkpoint.json", "rank-00000.safetensors"]
    reader, problems = newest_good(tmp_path)
    assert reader is not None
    assert (reader.step, reader.meta, problems) == (12, META, [])
    assert set(reader.tensors) == set(STATE)
    for name, tensor in STATE.items():
        read = reader.read_whole(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_background_and_foreground_write_the_same_files(tmp_path: Path) -> None:
    for asynchronous in (False, True):
        store = make_store(tmp_path / str(asynchronous), asynchronous=asynchronous)
        store.save(1, [Piece.whole(name, tensor) for name, tensor in STATE.items()], META)
        store.wait()
    for name in ("checkpoint.json", "rank-00000.safetensors"):
        files = [tmp_path / folder / "step-00000001" / name for folder in ("False", "True")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    save_steps(tmp_path, [1])
    (stored,) = load_file(tmp_path / "step-00000001" / "rank-00000.safetensors").values()
    assert torch.equal(stored, torch.full((50,), 1.0))


def test_the_state_may_change_once_save_returns_and_buffers_are_reused(tmp_path: Path) -> None:
    store = make_store(tmp_path, asynchronous=True)
    weights = torch.zeros(1 << 20)
    for step in (1, 2):
        weights.fill_(step)
        store.save(step, [Piece.whole("weights", weights)], {})
        weights.fill_(-1)
    store.wait()
    for path in list_checkpoints(tmp_path):
        assert verify(path) == []
    reader, _ = newest_good(tmp_path)
    assert reader is not None
    assert torch.equal(reader.read_whole("weights"), torch.full((1 << 20,), 2.0))


def test_a_second_save_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    stores = [make_store(tmp_path, rank=rank, world_size=2, asynchronous=rank == 0) for rank in (0, 1)]
    halves = [[Piece(name="x", tensor=torch.ones(4), shape=(8,), start=4 * rank)] for rank in (0, 1)]
    stores[0].save(1, halves[0], {})  # cannot end before rank 1 has saved
    assert stores[0].poll() == []
    other = threading.Thread(target=lambda: [stores[1].save(step, halves[1], {}) for step in (1, 2)])
    other.start()
    stores[0].save(2, halves[0], {})
    stores[0].wait()
    other.join()
    first, second = stores[0].poll()
    assert first.is_durable and second.is_durable
    assert first.wait_s < second.wait_s <= second.stall_s
    assert [result.is_durable for result in stores[1].poll()] == [True, True]
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, 0, [70]), (2, 0, [60, 70]), (1, 30, [30, 60, 70]), (3, 20, [20, 40, 50, 60, 70])],
)
def test_retention(tmp_path: Path, keep_last: int, keep_every: int, kept: list[int]) -> None:
    save_steps(tmp_path, [10, 20, 30, 40, 50, 60, 70], keep_last=keep_last, keep_every=keep_every)
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]


def test_bad_checkpoints_do_not_count_as_kept_and_later_ones_are_left_alone(tmp_path: Path) -> None:
    save_steps(tmp_path, [10, 20, 90], keep_last=3)
    os.truncate(tmp_path / "step-00000020" / "rank-00000.safetensors", 100)
    (tmp_path / "step-00000090" / "checkpoint.json").unlink()
    save_steps(tmp_path, [30], nonce="b", keep_last=2)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (10, 20, 30, 90)]
    save_steps(tmp_path, [40], nonce="c", keep_last=2)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (30, 40, 90)]


def test_leftovers_of_other_starts_are_ignored_and_cleaned(tmp_path: Path) -> None:
    save_steps(tmp_path, [10])
    shutil.copytree(tmp_path / "step-00000010", tmp_path / "step-00000020.tmp-old.1")
    (tmp_path / "step-00000020.tmp-new.1").mkdir()  # another rank of this start is ahead
    (tmp_path / "step-00000020.failed-old.1").write_text("rank 3: no luck")
    (tmp_path / "notes.txt").write_text("the user's own")
    reader, problems = newest_good(tmp_path)
    assert reader is not None
    assert (reader.step, problems) == (10, [])
    make_store(tmp_path, nonce="new")
    assert names(tmp_path) == ["notes.txt", "step-00000010", "step-00000020.tmp-new.1"]


def test_no_directory_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "nowhere") == (None, [])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("rank-00000.safetensors", truncate, r"rank-00000.safetensors has \d+ bytes, \d+ were written"),
        ("rank-00000.safetensors", flip, "rank-00000.safetensors is damaged: its sha256 does not match"),
        ("rank-00000.safetensors", Path.unlink, "rank-00000.safetensors is missing"),
        ("checkpoint.json", truncate, "checkpoint.json is damaged: .*"),
        ("checkpoint.json", flip, "checkpoint.json is damaged: .*"),
        ("checkpoint.json", Path.unlink, "checkpoint.json is missing"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, file: str, damage: Any, reason: str) -> None:
    save_steps(tmp_path, [10, 20])
    damage(tmp_path / "step-00000020" / file)
    reader, problems = newest_good(tmp_path)
    assert reader is not None
    assert reader.step == 10
    assert torch.equal(reader.read_whole("x"), torch.full((50,), 10.0))
    (problem,) = problems
    assert "\n" not in problem
    assert re.fullmatch(rf"checkpoint \S*step-00000020 is bad: {reason}", problem)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    save_steps(tmp_path, [10])
    path = tmp_path / "step-00000010"
    for file in path.iterdir():
        content = file.read_bytes()
        for place in range(len(content)):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert len(verify(path)) == 1, f"byte {place} of {file.name}"
        file.write_bytes(content)
    assert verify(path) == []


def test_a_folder_renamed_to_another_step_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, [10])
    (tmp_path / "step-00000010").rename(tmp_path / "step-00000011")
    assert verify(tmp_path / "step-00000011") == ["checkpoint.json is of step 10"]


def test_a_document_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, [10])
    document = tmp_path / "step-00000010" / "checkpoint.json"
    sealed = json.loads(document.read_text())
    sealed["body"]["files"][0]["name"] = "../rank-00000.safetensors"
    body = json.dumps(sealed["body"], sort_keys=True, separators=(",", ":"))
    document.write_text(json.dumps({"body": sealed["body"], "sha256": hashlib.sha256(body.encode()).hexdigest()}))
    (problem,) = verify(document.parent)
    assert problem.startswith("checkpoint.json is damaged: files.0.name: ")


def test_a_save_with_a_gap_fails_and_leaves_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.save(10, [Piece.whole("x", torch.ones(4))], {})
    store.save(20, [Piece(name="x", tensor=torch.ones(3), shape=(8,), start=2)], {})
    with pytest.raises(
        OSError, match=r"step 20 was not saved: rank 0: tensor x, part 0 of 1: no rank saved elements \[0, 2\) of 8;"
    ):
        store.wait()
    assert [result.is_durable for result in store.poll()] == [True, False]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010"]
    store.save(20, [Piece.whole("x", torch.ones(4))], {})
    store.wait()
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def test_ranks_that_disagree_about_a_tensor_are_named(tmp_path: Path) -> None:
    stores = [make_store(tmp_path, rank=rank, world_size=2, asynchronous=rank == 1) for rank in (0, 1)]
    stores[1].save(10, [Piece.whole("x", torch.ones(4, dtype=torch.float64))], {})
    stores[0].save(10, [Piece.whole("x", torch.ones(4))], {})
    for store in stores:
        with pytest.raises(
            OSError, match=r"tensor x has dtype F32 in rank-00000.safetensors and F64 in rank-00001.safetensors"
        ):
            store.wait()


def test_programming_errors_raise_at_once(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(1, [], {"tensor": torch.ones(1)})
    with pytest.raises(ValueError, match=r"tensor x: two pieces hold elements \[0, 4\) of part 0"):
        store.save(1, [Piece.whole("x", torch.ones(4))] * 2, {})
    assert names(tmp_path) == []


def test_what_is_written_is_flushed_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    operations = {name: getattr(os, name) for name in ("write", "fsync", "rename")}

    def path_of(target: Any) -> str:
        return Path(os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target).name

    for name, operation in operations.items():

        def record(target: Any, *rest: Any, name: str = name, operation: Any = operation) -> Any:
            events.append((name, path_of(target)))
            return operation(target, *rest)

        monkeypatch.setattr(os, name, record)
    save_steps(tmp_path, [10])
    folder = "step-00000010.tmp-a.1"
    tensors, index, contents = "rank-00000.safetensors", "rank-00000.json.part", "checkpoint.json.part"
    assert list(dict.fromkeys(events)) == [
        *[("write", tensors), ("fsync", tensors)],
        *[("write", index), ("fsync", index), ("rename", index)],
        *[("write", contents), ("fsync", contents), ("rename", contents)],
        *[("fsync", folder), ("rename", folder), ("fsync", tmp_path.name)],
    ]


def test_ranks_agree_on_the_newest_good_one(tmp_path: Path) -> None:
    def save(step: int) -> None:
        stores = [make_store(tmp_path, rank=rank, world_size=3, asynchronous=rank > 0) for rank in (0, 1, 2)]
        for rank, store in reversed(list(enumerate(stores))):
            store.save(step, [Piece(name="x", tensor=torch.full((2,), step), shape=(6,), start=2 * rank)], {})
        for store in stores:
            store.wait()

    save(10)
    save(20)
    flip(tmp_path / "step-00000020" / "rank-00002.safetensors")  # only the last rank hashes this one
    barrier, board = threading.Barrier(3), [[], [], []]
    found: dict[int, tuple[int, list[str]]] = {}

    def rank_thread(rank: int) -> None:
        def gather(strings: list[str]) -> list[str]:
            board[rank] = strings
            barrier.wait()
            everyone = [string for strings in board for string in strings]
            barrier.wait()
            return everyone

        def share(strings: list[str]) -> list[str]:
            board[rank] = strings
            barrier.wait()
            of_first = board[0]
            barrier.wait()
            return of_first

        reader, problems = newest_good(tmp_path, rank=rank, world_size=3, gather=gather, share=share)
        found[rank] = (reader.step if reader else -1, problems)

    threads = [threading.Thread(target=rank_thread, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    line = (
        f"checkpoint {tmp_path / 'step-00000020'} is bad: rank-00002.safetensors is damaged: its sha256 does not match"
    )
    assert found == {rank: (10, [line]) for rank in range(3)}


def test_after_an_error_a_save_that_only_needs_the_other_ranks_threads_becomes_durable(tmp_path: Path) -> None:
    piece = [Piece.whole("weights", torch.ones(5))]
    stores = [make_store(tmp_path, rank=rank, world_size=2, asynchronous=True) for rank in (0, 1)]
    stores[0].save(1, piece, {})
    late = threading.Timer(0.3, stores[1].save, (1, [], {}))
    late.start()
    stores[0].settle(60)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert [result.is_durable for result in stores[0].poll()] == [True]
    late.join()
    stores[0].save(2, piece, {})  # nobody joins in this one
    stores[0].settle(0.2)
    assert stores[0].poll() == []
