"""Plans of CPUs: what pieces that were measured make together, by hand, and what is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.plan.__main__ import main
from pretrain.plan.machine import Gpu, Sending
from pretrain.plan.measured import CpuPieces, _one_layer
from pretrain.plan.messages import MOST_BYTES, seconds_to_send
from pretrain.plan.plan import make_plan
from pretrain.plan.search import estimate

AHEAD, BACK, EMBEDDING, HEAD, ADDITION, UPDATE = 1.0, 2.0, 0.25, 5.0, 1e-6, 3e-6
SENDING: dict[Sending, float] = {"sum": 7e-3, "scatter": 5e-3, "gather": 3e-3, "message": 2e-3}
"""Seconds a byte."""
MODEL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "ffn_size": 48, "num_loop_layers": 2}


@dataclass
class Given:
    """Pieces that take as long as is said here."""

    def layer(self, config: RunConfig) -> tuple[float, float]:
        return AHEAD, BACK

    def embedding(self, config: RunConfig) -> float:
        return EMBEDDING

    def head(self, config: RunConfig) -> float:
        return HEAD

    def addition(self, config: RunConfig) -> float:
        return ADDITION

    def update(self, config: RunConfig) -> float:
        return UPDATE

    def sending(self, way: Sending, size: float, number: int, num_ranks: int) -> float:
        return SENDING[way] * size


MACHINE = Gpu(
    name="cpu", peak_flops=1e6, memory=2**40, memory_rate=1e30, link_rate=1e30, network_rate=1e30, per_node=1,
    pieces=Given(),
)  # fmt: skip
"""On which a product of n FLOPs takes n microseconds."""


def run_of(**sections: dict[str, Any]) -> RunConfig:
    model = MODEL | {"num_loops": 3} | sections.pop("model", {})
    train = {"seq_len": 8, "micro_batch": 2, "global_batch": 4, "precision": "fp32"} | sections.pop("train", {})
    return RunConfig.model_validate({"model": model, "train": train, **sections})


@pytest.mark.parametrize(
    ("recompute", "again", "spared"),
    [("none", 0, 0), ("selective", 0, 0), ("layer", 6, 6), ("loop", 6, 3), ("segment", 12, 6)],
)
def test_a_step_is_made_of_its_pieces(recompute: str, again: int, spared: int) -> None:
    """Two micro-batches of three loops of two layers; what is computed again stops before a last product."""
    config = run_of(train={"recompute": recompute})
    parameters = sum(make_plan(config, 1).parameters.values())
    last_product = 2 * 16 * 48 * 32 / 1e6
    micro_batch = 6 * (AHEAD + BACK) + again * AHEAD - spared * last_product + EMBEDDING + HEAD
    micro_batch += 3 * parameters * ADDITION
    assert estimate(config, 1, MACHINE).cost.seconds == pytest.approx(2 * micro_batch + parameters * UPDATE)


STATES = 16 * 32 * 4
"""Bytes of the states of a micro-batch."""


@pytest.mark.parametrize(
    ("parallel", "sent"),
    [
        ({"tensor": 2}, 50 * SENDING["sum"] * STATES),
        ({"tensor": 2, "sequence": True}, 50 * (SENDING["gather"] + SENDING["scatter"]) * STATES),
        ({"pipeline": 2}, 2 * 2 * 3 * SENDING["message"] * STATES),
    ],
    ids=["tensor", "sequence", "pipeline"],
)
def test_sending_takes_the_ranks_own_time(parallel: dict[str, Any], sent: float) -> None:
    """Two micro-batches; twelve passes of a layer with two sums each, and half of one for embedding and loss each."""
    config = run_of(parallel=parallel)
    times = estimate(config, 2, MACHINE).cost.times
    assert times.tensor + times.ring == pytest.approx(sent)


def test_gradients_are_scattered_and_weights_gathered_also_where_that_would_overlap() -> None:
    for overlap in (False, True):
        config = run_of(parallel={"overlap": overlap})
        parameters = sum(make_plan(config, 2).parameters.values())
        sent = 4 * parameters * (SENDING["scatter"] + SENDING["gather"])
        assert estimate(config, 2, MACHINE).cost.times.gradients == pytest.approx(sent)


def test_what_is_measured_is_one_layer_of_a_rank() -> None:
    model = {"num_loops": 4, "num_prelude_layers": 1, "loop": {"injection": "add"}, "num_key_value_heads": 2}
    shape = _one_layer(run_of(model=model, parallel={"tensor": 2}))
    assert (shape.effective_depth(), shape.num_attention_heads, shape.kv_heads, shape.head_dim) == (1, 2, 1, 8)
    assert (shape.hidden_size, shape.ffn_size, shape.vocab_size, shape.loop.injection) == (32, 24, 32, "none")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of a few repetitions."""
    monkeypatch.setattr("pretrain.plan.measured.MEASURE_S", 0.0)
    monkeypatch.setattr("pretrain.plan.measured.keep_freed_memory", lambda: True)
    monkeypatch.setattr("pretrain.plan.measured.measure_flops", lambda *_: 1e9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_piece_takes_time_and_large_ones_as_many_times_more(
    quick: None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.plan.measured.MOST_TOKENS", 16)
    pieces, two = CpuPieces(), run_of(train={"precision": precision})
    four = run_of(train={"precision": precision, "micro_batch": 4})
    ahead, back = pieces.layer(two)
    assert min(ahead, back, pieces.embedding(two), pieces.head(two), pieces.addition(two), pieces.update(two)) > 0
    assert pieces.layer(four) == (2 * ahead, 2 * back)


@pytest.mark.parametrize("way", get_args(Sending))
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_each_way_to_send_takes_time(way: Sending, num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.plan.messages.MEASURE_S", 0.0)
    monkeypatch.setattr("pretrain.plan.messages.LEAST_TIMES", 2)
    assert 0 < seconds_to_send(way, 6000, 4, num_ranks) < 10


def test_much_takes_as_many_times_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.plan.messages._least", lambda turns: float(len(turns)))
    assert seconds_to_send("sum", 3 * MOST_BYTES, 4, 2) == 3 * 2.0


def test_the_plan_of_this_machine_says_how_to_start(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {vocab_size: 64, hidden_size: 32, num_attention_heads: 4, ffn_size: 48, num_loop_layers: 2}\n"
        "train: {seq_len: 8, micro_batch: 2, global_batch: 4, precision: fp32}\n"
    )
    try:
        assert main(["--config", str(config), "--gpus", "1", "--gpu", "cpu"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{config} on 1 cpu, 1 node")
    start = f"python -m pretrain.launch --ranks 1 -m pretrain.train --config {config} parallel.tensor=1"
    assert lines[-1].split(maxsplit=1)[1].startswith(start)
