"""`train.recompute=auto`: the cheapest way to recompute that fits into the memory of a rank."""

from itertools import pairwise

import pytest

from pretrain.config.layout import check_layout
from pretrain.plan.plan import Plan, make_plan
from pretrain.plan.policy import GIB, Room, candidates, choose_recompute, expected_room
from pretrain.plan.room import model_needs
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
    assert ways == ["none", "layer", "offload", "loop", "segment"]
    assert of_ways["none"] > of_ways["layer"] > of_ways["loop"] > of_ways["offload"] > of_ways["segment"]
    recomputed = [plan.recomputed for plan in plans if plan.config.train.recompute != "offload"]
    assert all(more > less for less, more in pairwise(recomputed))


@pytest.mark.parametrize(
    ("mode", "has_host"),
    [("none", True), ("layer", True), ("offload", True), ("segment", True), ("loop", False), ("segment", False)],
)
def test_the_cheapest_that_fits_is_chosen(mode: str, has_host: bool) -> None:
    """Without a host of its own, as on a CPU, no offloading."""
    choice = choose_recompute(AUTO, 1, None, Room(sizes()[mode], "a card", has_host))
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


def test_room_is_that_of_the_configuration_or_a_share_of_the_machine() -> None:
    given = AUTO.model_copy(update={"train": AUTO.train.model_copy(update={"memory_gib": 2.5})})
    assert expected_room(given, 4) == (2.5 * GIB, "train.memory_gib", True)
    assert expected_room(AUTO, 2).bytes * 2 == pytest.approx(expected_room(AUTO, 1).bytes)
