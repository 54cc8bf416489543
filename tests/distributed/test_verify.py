"""`python -m pretrain.verify`: every row holds for jobs of different structure, and each row finds what it is for."""

import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pretrain import verify
from pretrain.config.run import RunConfig
from pretrain.data.stream.loader import Loader
from pretrain.generation.slots import SlotCache
from pretrain.hf.names import Rule
from pretrain.model.loop.injection.add import Add
from pretrain.model.loop.tables import INJECTIONS
from pretrain.model.loop.variant import Held
from pretrain.plan.plan import make_plan
from pretrain.verification import answers, checks, data_order, interruption, layouts, work
from tests.distributed.cases import make_engine, tiny_config
from tests.distributed.pool import RankPool
from tests.distributed.training import write_corpus

pytestmark = pytest.mark.timeout(600)
RUNG = re.compile(r"([✓✗–]) (\w+) +(.*)  \[[\d.]+ s\]")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def text_job(corpus: Path, tmp_path: Path) -> list[str]:
    """The quick start's model, a ring of two stages, on small shards."""
    sources = f"data.sources=[{{path: {corpus}/shards}}]"
    return [
        "--config=configs/pretrain/quickstart.yaml", f"data.tokenizer={corpus}/tokenizer.model", sources,
        "model.vocab_size=320", "data.validation_fraction=0.2", "data.num_workers=0", f"run.root={tmp_path}",
        "validation.tasks_every=3", "validation.tasks=[addition_8]", "train.compile=true",
    ]  # fmt: skip


@pytest.fixture
def task_job(tmp_path: Path) -> list[str]:
    """A task, with an injection, over tensor-parallel ranks."""
    job = ["--config=configs/tasks/addition_small.yaml", "--world-size=2", "parallel.tensor=2"]
    return [*job, "model.loop.injection=add", "model.num_coda_layers=1", f"run.root={tmp_path}"]


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[tuple[str, str, str]]]:
    """The exit code, and mark, name and text of each row."""
    code = verify.main(arguments)
    printed = capsys.readouterr()
    assert not printed.err
    return code, [found.groups() for line in printed.out.splitlines() if (found := RUNG.fullmatch(line))]


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(checks, "CHECKS", tuple(check for check in checks.CHECKS if check.name in names))


def test_every_row_holds_for_text_on_a_ring(text_job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, found = rows(capsys, *text_job)
    assert code == 0, found
    names = ["data", "data", "disk", "memory", "order", "layout", "cache", "cache", "cache", "resume", "tasks"]
    marked = [*(("✓", name) for name in names), ("–", "compile"), ("✓", "export")]
    assert [(mark, name) for mark, name, _ in found] == marked
    texts = {name: text for _, name, text in found}
    assert "pipeline 2 = one rank in fp64: 3 updates, 5 depths" in texts["layout"]
    assert "resumed = uninterrupted, bit for bit: pipeline 2, 6 steps in fp32" in texts["resume"]
    assert texts["tasks"] == "1 task scored between steps: addition_8"
    assert "not tried here" in texts["compile"]


def test_every_row_holds_for_a_task_with_an_injection(
    task_job: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "data", "room", "order", "layout", "cache")  # a run and its export: the test before
    code, found = rows(capsys, *task_job)
    assert code == 0 and all(mark == "✓" for mark, _, _ in found), found
    compared = [text.partition(" = ")[0] for _, name, text in found if name == "layout"]
    assert compared == ["tensor 2"]
    assert any(
        text.startswith("task addition: 8 examples of train and validation made and solved") for *_, text in found
    )


class LeakingInput(Add):
    """An injection that adds a little more the more ranks there are."""

    def enter(self, held: Held, states: Tensor, carried: Tensor, loop: int) -> Tensor:
        import torch.distributed as dist

        return super().enter(held, states, carried, loop) * (1 + 1e-6 * (dist.get_world_size() - 1))


def measure_leaking(*arguments: Any) -> Any:
    INJECTIONS["add"] = LeakingInput
    return work.measure(*arguments)


def answer_with_shared_cache(*arguments: Any) -> Any:
    """All loops but the first see the keys and values of the first application."""
    held = SlotCache.__init__

    def sharing(cache: SlotCache, *arguments: Any, **how: Any) -> None:
        held(cache, *arguments, **how)
        cache._held = [0] * len(cache._held)

    SlotCache.__init__ = sharing  # type: ignore[method-assign]
    return work.answer_with_cache(*arguments)


def train_from_the_first_sample(config: RunConfig) -> int:
    """A resumed run forgets where its data was."""
    Loader.load_state = lambda *_: None  # type: ignore[method-assign]
    return work.train(config)


def export_shifted(*arguments: Any) -> Any:
    join = Rule.join
    Rule.join = lambda rule, ours: join(rule, ours) + 1e-3  # type: ignore[method-assign]
    return work.export(*arguments)


class TurningLoader(Loader):
    """Hands out the rows of a batch in another order where there are several ranks."""

    def __init__(self, *arguments: Any, num_ranks: int = 1, **settings: Any) -> None:
        super().__init__(*arguments, num_ranks=num_ranks, **settings)
        self.shift = num_ranks - 1

    def next_batch(self) -> Any:
        import numpy as np

        return np.roll(super().next_batch(), self.shift, axis=0)


def test_each_row_finds_what_it_is_for(
    text_job: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = "tests.distributed.test_verify:"
    monkeypatch.setattr(layouts, "MEASURE", f"{here}measure_leaking")
    monkeypatch.setattr(answers, "WITH_CACHE", f"{here}answer_with_shared_cache")
    monkeypatch.setattr(interruption, "TRAIN", f"{here}train_from_the_first_sample")
    monkeypatch.setattr(interruption, "EXPORT", f"{here}export_shifted")
    monkeypatch.setattr(data_order, "Loader", TurningLoader)
    only(monkeypatch, "order", "layout", "cache", "resume", "export")
    code, found = rows(capsys, *text_job, "model.loop.injection=add")
    assert code == 1
    wrong = {name: text for mark, name, text in found if mark == "✗"}
    number = r"-?[\d.e-]+"
    assert re.fullmatch(r"token \d+ of sample 0 is \d+ on 2 ranks, \d+ on one", wrong["order"])
    assert re.fullmatch(
        rf"pipeline 2 in fp64: gradient norm of step 1, L=\d is {number} on pipeline 2, {number} on one rank",
        wrong["layout"],
    )
    assert re.fullmatch(
        rf"new token \d of prompt \d at L=\d is \d+ on the cached pass, \d+ on a pass without cache|"
        rf"log-probability of new token \d of prompt \d at L=\d is {number} on the cached pass, .*",
        wrong["cache"],
    )
    assert re.fullmatch(
        rf"loss of step \d+ is {number} on the resumed one, {number} on the uninterrupted run", wrong["resume"]
    )
    assert "logits differ by" in wrong["export"]


def test_a_flipped_bit_in_a_shard_and_a_small_disk_are_found(
    corpus: Path, tmp_path: Path, text_job: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shard = sorted((corpus / "shards").glob("*.tar"))[1]
    whole = shard.read_bytes()
    only(monkeypatch, "data", "room", "order")
    place = 512 + 130  # in the first document
    try:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        code, found = rows(
            capsys, *text_job, "checkpoint.keep_last=1000000000", "train.steps=1000000000", "checkpoint.every=1"
        )
    finally:
        shard.write_bytes(whole)
    assert code == 1
    wrong = {name: text for mark, name, text in found if mark == "✗"}
    assert re.fullmatch(rf"{shard}: document 0 at byte 512 is damaged: its CRC-32 is not 0x[0-9a-f]+", wrong["data"])
    assert re.fullmatch(
        r"1000000001 checkpoints of 0.01 GiB need [\d.]+ GiB more, [\d.]+ GiB free in .*", wrong["disk"]
    )


def test_a_missing_tokenizer_is_told_once(
    text_job: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "data", "order")
    code, found = rows(capsys, *text_job, "data.tokenizer=nowhere.model")
    assert code == 1
    assert [(mark, name) for mark, name, _ in found] == [("✗", "data"), ("–", "order")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.step=3",), "train.step: unknown key, did you mean train.steps?"),
        (("--world-size=3",), "world size=3 is not divisible by parallel.tensor · parallel.pipeline=2"),
        (("data.sources=[]",), "data.sources is empty: name at least one folder of shards, or a task"),
        (("--config=nowhere.yaml",), "nowhere.yaml: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and message in line and not printed.out


def saved_bytes(config: RunConfig) -> int:
    engine, _ = make_engine(config)
    return sum(piece.tensor.nbytes for piece in engine.pieces())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize(("layout", "size"), [({}, 1), ({"tensor": 2}, 2), ({"pipeline": 2}, 2), ({}, 2)])
def test_planned_size_of_a_checkpoint_is_the_saved_one(
    pool: RankPool, optimizer: str, layout: dict[str, int], size: int
) -> None:
    config = tiny_config("gpt2", **layout, train={"precision": "fp32"}, optimizer={"name": optimizer})
    assert sum(pool.run(saved_bytes, config, world_size=size)) == make_plan(config, size).checkpoint_bytes
