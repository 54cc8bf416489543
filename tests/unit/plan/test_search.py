"""The planner: traffic and time by hand, what is found, what is printed, wrong inputs."""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain import train
from pretrain.config.layout import check_layout
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.model.loop.recurrence import Stage
from pretrain.plan.__main__ import main
from pretrain.plan.buckets import num_buckets
from pretrain.plan.cost import PlannedCost, StageWork, step_cost
from pretrain.plan.machine import COMPILED, GPUS, USABLE, Gpu
from pretrain.plan.pipeline import idle_share
from pretrain.plan.plan import make_plan
from pretrain.plan.search import ReplicaCut, cuts, estimate, estimates, fits, savings

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "pretrain" / "12x2.yaml"
H100 = GPUS["h100"]
TOKENS, WIDTH = 4 * 1024, 1024


def config(**sections: dict[str, Any]) -> RunConfig:
    model = {
        "vocab_size": 1024, "hidden_size": WIDTH, "num_attention_heads": 8, "ffn_size": 2816, "num_loop_layers": 8,
        "num_loops": 2, **sections.pop("model", {}),
    }  # fmt: skip
    train = {"seq_len": 1024, "micro_batch": 4, "global_batch": 256, **sections.pop("train", {})}
    return RunConfig.model_validate({"model": model, "train": train, "data": {"num_streams": 256}, **sections})


def cost(ranks: int, gpu: Gpu = H100, **sections: dict[str, Any]) -> PlannedCost:
    return step_cost(make_plan(config(**sections), ranks), gpu, COMPILED)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_gradients_cross_the_network_once_for_a_node() -> None:
    """Eight ranks of a node stand in one ring with those of another: each sends an eighth of its share over the
    network; in fp32 there and in bf16 back."""
    plan = make_plan(config(), 16)
    size = sum(plan.parameters.values()) * (4 + 2) * 15 / 16
    traffic = cost(16).traffic
    assert (traffic.link, traffic.network) == pytest.approx((size * 7 / 8, size / 8))
    alone = cost(8).traffic
    assert (alone.link, alone.network) == pytest.approx((size * 16 / 15 * 7 / 8, 0))
    assert cost(1).traffic.total == 0


def test_loops_do_not_add_to_the_traffic_of_gradients() -> None:
    once, four = (cost(16, model={"num_loops": loops}) for loops in (1, 4))
    assert four.traffic == once.traffic and four.times.gradients == once.times.gradients > 0


def test_overlap_hides_traffic_behind_the_last_backward_pass_and_the_first_forward_pass_alone() -> None:
    """Of three buckets, in which eight layers are sent, the last one's gradients are ready when nothing is left to do,
    and the first one's weights are needed at once; with a fast network all others are hidden, with a slow one as much
    as the passes take. The regulariser's gradients come when it is over."""
    alone, hidden = cost(16), cost(16, parallel={"overlap": True})
    assert hidden.times.gradients == pytest.approx(alone.times.gradients / 3)
    assert hidden.traffic.hidden == pytest.approx(2 / 3 * hidden.traffic.total)
    whole = {"name": "adafactor"}  # whose ranks all update everything: sums go out, and sums come back
    reduced = cost(16, parallel={"overlap": True}, optimizer=whole).times.gradients
    assert reduced == pytest.approx(cost(16, optimizer=whole).times.gradients * (1 - 2 / 3 / 2))
    slow = replace(H100, network_rate=H100.network_rate / 1e4)
    saved = cost(16, slow).times.gradients - cost(16, slow, parallel={"overlap": True}).times.gradients
    plan = make_plan(config(parallel={"overlap": True}), 16)
    ahead, back = StageWork(plan=plan, gpu=slow, software=COMPILED, stage=Stage(index=0, count=1))._layer
    assert saved == pytest.approx(2 / 3 * 8 * (back.total + ahead.total))
    late = {"num_loops": 1, "loop_regulariser": {"weight": 1.0, "block_size": 4}}
    of_weights = 2 / (4 + 2)
    plain = cost(16, model=late).times.gradients
    assert cost(16, parallel={"overlap": True}, model=late).times.gradients < plain
    assert cost(16, parallel={"overlap": True}, model=late).times.gradients > (1 - of_weights) * plain


def test_buckets_are_fewer_on_more_ranks_and_a_layer_is_in_one() -> None:
    assert [num_buckets(105e6, ranks) for ranks in (2, 79, 80, 1000)] == [3, 3, 2, 1]
    wide = {"hidden_size": 4096, "ffn_size": 11008}  # more elements in a layer than in a bucket
    alone, hidden = (cost(16, model=wide, parallel={"overlap": overlaps}) for overlaps in (False, True))
    assert hidden.times.gradients == pytest.approx(alone.times.gradients / 8)


def test_gradients_in_bf16_are_half_the_bytes() -> None:
    wide, narrow = cost(16), cost(16, parallel={"reduce_precision": "bf16"})
    assert narrow.traffic.total == pytest.approx((2 + 2) / (4 + 2) * wide.traffic.total)
    assert narrow.times.gradients == pytest.approx((2 + 2) / (4 + 2) * wide.times.gradients)


def test_a_tensor_parallel_layer_gathers_and_scatters_twice_each_way() -> None:
    """16 applications of layers, 4 collectives forward and 4 backward of half of the states each, and one for the
    embedding and for the head."""
    parallel = {"tensor": 2, "sequence": True}
    states = TOKENS * WIDTH * 2 / 2
    micro_batches = 256 / 4
    assert cost(2, parallel=parallel).traffic.link == pytest.approx(micro_batches * states * (16 * 8 + 2))
    again = cost(2, parallel=parallel, train={"recompute": "layer"}).traffic.link
    assert again == pytest.approx(micro_batches * states * (16 * 12 + 2))


def test_a_ring_sends_states_once_a_loop_each_way_behind_computation() -> None:
    found = cost(4, parallel={"pipeline": 4})
    assert found.traffic.link == pytest.approx(2 * 2 * 64 * TOKENS * WIDTH * 2)
    assert found.traffic.hidden == found.traffic.link and found.times.ring == 0
    apart = cost(4, replace(H100, per_node=2), parallel={"pipeline": 4})
    assert (apart.traffic.link, apart.traffic.network) == (0, found.traffic.link)


def test_the_idle_share_is_that_of_the_timetable() -> None:
    """Of equal stages: a vocabulary of next to nothing, no prelude, no optimizer's time."""
    found = cost(4, parallel={"pipeline": 4}, model={"vocab_size": 8}, train={"micro_batch": 16})
    working = found.times.total - found.times.optimizer
    assert found.times.idle / working == pytest.approx(idle_share(2, 16, 4), rel=0.01)


def test_time_of_large_products_is_that_of_their_flops() -> None:
    plan = make_plan(config(model={"hidden_size": 16384, "ffn_size": 65536, "num_attention_heads": 128}), 1)
    work, _ = StageWork(plan=plan, gpu=H100, software=COMPILED, stage=Stage()).micro_batch
    products = 6 * sum(plan.parameters.values()) * 2 * TOKENS / (COMPILED.matrices * H100.peak_flops)
    assert work.matrices == pytest.approx(products, rel=0.15) and work.matrices > products
    assert work.total > work.matrices > 0.7 * work.total


def test_what_is_recomputed_takes_time_but_no_part_of_the_mfu() -> None:
    plain, again = (cost(1, train={"recompute": recompute}) for recompute in ("none", "layer"))
    assert again.seconds > 1.2 * plain.seconds and again.flops == plain.flops
    assert again.mfu / plain.mfu == pytest.approx(plain.seconds / again.seconds)


# --- the search -------------------------------------------------------------------------------------------------------


def test_all_cuts_are_tried_and_recomputation_only_where_it_is_needed() -> None:
    found = {(cut.tensor, cut.pipeline) for cut in cuts(config(), 16, H100)}
    assert found == {
        (tensor, pipeline) for tensor in (1, 2, 4, 8) for pipeline in (1, 2, 4, 8, 16) if tensor * pipeline <= 16
    }
    assert {cut.micro_batch for cut in cuts(config(), 16, H100) if cut.tensor * cut.pipeline == 1} == {1, 2, 4, 8, 16}
    with pytest.raises(ValueError, match=r"model.num_loop_layers=8 is not divisible by parallel.pipeline=16"):
        estimates(config(), ReplicaCut(1, 16, 1), 16, H100)
    (plain,) = estimates(config(), ReplicaCut(2, 4, 1), 16, H100)
    assert plain.plan.config.train.recompute == "none" and plain.plan.config.parallel.sequence
    tight = replace(H100, memory=plain.memory)
    assert [each.plan.config.train.recompute for each in estimates(config(), ReplicaCut(2, 4, 1), 16, tight)][:2] == [
        "none",
        "selective",
    ]


def test_a_ring_of_two_loops_saves_half_of_what_an_unlooped_model_needs() -> None:
    model = {"vocab_size": 8}
    run = config(model=model, parallel={"pipeline": 4}, train={"recompute": "loop"})
    saved = savings(estimate(run, 16, H100), H100)
    ring, deep = (each.plan.stages[1] for each in (saved.ring, saved.unlooped))
    assert deep.parameters == 2 * ring.parameters and deep.gradients == 2 * ring.gradients
    assert saved.unlooped.cost.flops == pytest.approx(saved.ring.cost.flops, rel=1e-3)
    assert saved.unlooped.cost.times.idle > 1.5 * saved.ring.cost.times.idle > 0
    micro_batches, ranks = 16, 4
    gathered = 2 * 2 * micro_batches * 2 * ring.parameters * (ranks - 1) / ranks
    assert saved.fsdp_bytes == pytest.approx(gathered, rel=1e-3)


Planner = Callable[..., list[str]]


@pytest.fixture
def planner(capsys: pytest.CaptureFixture[str]) -> Planner:
    def plan(*arguments: str, code: int = 0, path: Path = CONFIG) -> list[str]:
        assert main(["--config", str(path), *arguments]) == code
        said = capsys.readouterr()
        return (said.err if code else said.out).splitlines()

    return plan


def test_the_best_fit_are_sorted_and_each_can_be_submitted(planner: Planner) -> None:
    lines = planner("--gpus", "16", "--nodes", "4", "train.steps=5000", "optimizer.warmup_steps=10")
    rows = [line for line in lines if line[:2].strip().isdecimal() and "%" in line]
    commands = [shlex.split(line[3:]) for line in lines if "slurm/submit.sh" in line]
    assert len(rows) == len(commands) == 10
    seconds = []
    for row, words in zip(rows, commands, strict=True):
        assert words[:6] == [
            "bash", "slurm/submit.sh", "slurm/pretrain_looped.sh", "--nodes=4", "--ntasks-per-node=4",
            "--gpus-per-node=4",
        ]  # fmt: skip
        run = train.COMMAND_LINE.parse(["--config", *words[6:]]).config
        assert run.train.steps == 5000 and check_layout(run, 16).world_size == 16
        found = estimate(run, 16, replace(H100, per_node=4))
        assert fits(found, H100) and f"{found.memory / 2**30:.1f}" in row and f"{found.cost.mfu:.1%}" in row
        seconds.append(found.cost.seconds)
    assert seconds == sorted(seconds)


def test_a_table_says_what_fits_and_what_does_not(planner: Planner) -> None:
    lines = planner("--gpus", "8,64", path=ROOT / "configs" / "pretrain" / "looped_70b.yaml")
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 8 | no layout fits, the smallest needs 145.5 GiB") and lines[3].startswith("| 64 | ")


def tables() -> list[tuple[list[str], list[str]]]:
    """The commands of the cluster page that print a table, and its lines."""
    text = (ROOT / "slurm" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"    python -m pretrain\.plan (.*)\n\n((?:\|.*\n)+)", text)
    return [(shlex.split(arguments), table.splitlines()) for arguments, table in found]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(arguments, line) for arguments, lines in tables() for line in lines[2:]],
    ids=[f"{arguments[1].split('/')[-1]}-{line.split()[1]}" for arguments, lines in tables() for line in lines[2:]],
)
def test_the_tables_of_the_cluster_page_are_what_the_tool_prints(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    place, gpus = arguments.index("--gpus") + 1, line.split()[1]
    assert gpus in arguments[place].split(",")
    assert main([*arguments[:place], f"1,{gpus}", *arguments[place + 1 :]]) == 0
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "8", "--gpu", "h10"], "--gpu=h10 is not known, did you mean h100?"),
        (["--gpus", "8", "--nodes", "3"], "--gpus=8 is not divisible by --nodes=3"),
        (["--gpus", "7"], "--gpus 7: no layout can be: "),
        (["--gpus", "8,16", "--nodes", "2"], "--nodes goes with one number of --gpus"),
        (["--gpus", "8,16", "model.num_loops=1"], "model.num_loops=1: the table of several --gpus is of"),
        (["--gpus", "1000000"], "--gpus 1000000: at most 100,000"),
        (["--gpus", "8", "train.precision=fp32"], "train.precision=fp32: the planner knows GPUs in bf16 alone: add "),
        (["--gpus", "8", "--gpu", "h10", "train.precision=fp32"], "--gpu=h10 is not known, did you mean h100?"),
        (["--gpus", "1,2", "--gpu", "cpu"], "--gpu cpu goes with one number of --gpus"),
        (["--gpus", "4096", "--gpu", "cpu"], "--gpus 4096 --gpu cpu: ranks of this machine, which has "),
        (["--gpus", "1", "--gpu", "cpu", "train.compile=true"], "train.compile=true: --gpu cpu measures layers as"),
        (["--gpus", "1", "model.hidden_size=16384"], "--gpus 1: no layout fits, the smallest needs "),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(planner: Planner, arguments: list[str], said: str) -> None:
    (line,) = planner(*arguments, code=2)
    assert line.startswith(f"error: {said}")


def test_room_is_kept_for_the_framework() -> None:
    found = estimate(read_config(CONFIG, RunConfig), 8, H100)
    card = replace(H100, memory=found.memory / USABLE)
    assert fits(found, card) and not fits(found, replace(card, memory=card.memory * 0.999))
