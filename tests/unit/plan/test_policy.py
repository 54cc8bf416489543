"""`train.recompute=auto`: the cheapest way to recompute that fits into the memory of a rank."""

import math
from itertools import pairwise

import pytest

from pretrain.config.layout import check_layout
from pretrain.plan.plan import Plan, make_plan
from pretrain.plan.policy import GIB, Room, candidates, choose_recompute, expected_room
from pretrain.plan.room import host_needs, model_needs, require_room
from tests.unit.plan.test_plan import config

AUTO = config({"num_loop_layers": 2, "num_loops": 32}, train={"recompute": "auto", "seq_len": 128})


def sizes() -> dict[str, float]:
    """Bytes of a rank in each way."""
    return {each.train.recompute: size(make_plan(each, 1)) for each in candidates(AUTO)}


def size(plan: Plan) -> float:
    return plan.worst_stage.total


def test_what_holds_less_does_more() -> None:
    """Of many loops: each state of a loop is kept by one way, each that enters a layer by another."""
    of_ways = sizes()
    plans = sorted((make_plan(each, 1) for each in candidates(AUTO)), key=lambda plan: (plan.recomputed, -size(plan)))
    ways = [plan.config.train.recompute for plan in plans]
    assert ways == ["none", "selective", "layer", "offload", "loop", "segment"]
    by_size = ("none", "selective", "layer", "loop", "offload", "segment")
    assert all(of_ways[more] > of_ways[less] for more, less in pairwise(by_size))
    recomputed = [plan.recomputed for plan in plans if plan.config.train.recompute not in ("none", "offload")]
    assert recomputed[0] == 1, "no product is done again for activations of feed-forwards"
    assert all(more > less for less, more in pairwise(recomputed))


@pytest.mark.parametrize(
    ("mode", "host"),
    [
        *((mode, math.inf) for mode in ("none", "selective", "layer", "offload", "segment")),
        *((mode, host) for mode in ("loop", "segment") for host in (0, 1e4)),
    ],
)
def test_the_cheapest_that_fits_is_chosen(mode: str, host: float) -> None:
    """Without a host of its own, as on a CPU, or with one that is full, no offloading."""
    choice = choose_recompute(AUTO, 1, None, Room(sizes()[mode], "a card", host))
    assert choice.plan.config.train.recompute == mode
    assert choice.plan.config.model_dump(exclude={"train": {"recompute"}}) == AUTO.model_dump(
        exclude={"train": {"recompute"}}
    )
    assert choice.text.startswith(f"{mode}, the cheapest that fits into {sizes()[mode] / GIB:.2f} GiB (a card): none ")


def test_where_none_fits_it_says_by_how_much() -> None:
    room = sizes()["segment"] - 0.5 * GIB
    choice = choose_recompute(AUTO, 1, None, Room(room, "a card"))
    assert choice.plan.config.train.recompute == "segment"
    assert "none fits into" in choice.text and "segment, the smallest, needs 0.50 GiB more" in choice.text


def test_what_is_said_is_not_chosen() -> None:
    run = config({}, train={"recompute": "loop"})
    choice = choose_recompute(run, 1, None, Room(0, ""))
    assert (choice.plan.config, choice.text) == (run, "")


def test_a_run_is_refused_only_if_no_way_has_room() -> None:
    layout = check_layout(AUTO, 1)
    smallest = make_plan(candidates(AUTO)[-1], 1).worst_stage
    assert model_needs(AUTO, layout, None)[2].bytes == (smallest.activations + smallest.working) / 2


def test_what_waits_on_the_host_must_have_room_there() -> None:
    offload = config({"num_loop_layers": 4, "num_loops": 32}, train={"recompute": "offload", "seq_len": 128})
    (need,) = host_needs(offload, check_layout(offload, 1))
    assert need.bytes == make_plan(offload, 1).worst_stage.host > 0
    require_room([need], int(need.bytes), "this machine, for 1 rank")
    with pytest.raises(ValueError, match=r"for what enters layers \(train\.recompute=offload\); this machine"):
        require_room([need], int(need.bytes) - 1, "this machine, for 1 rank")
    assert host_needs(AUTO, check_layout(AUTO, 1))[0].bytes == 0


def test_room_is_that_of_the_configuration_or_a_share_of_the_machine() -> None:
    given = AUTO.model_copy(update={"train": AUTO.train.model_copy(update={"memory_gib": 2.5})})
    assert expected_room(given, 4) == (2.5 * GIB, "train.memory_gib", math.inf)
    assert expected_room(AUTO, 2).bytes * 2 == pytest.approx(expected_room(AUTO, 1).bytes)
