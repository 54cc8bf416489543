"""Every variant of the loop on any layout equals one process, in fp64: loss, gradient norm and every gradient.

Cases: every value, and every pair of values, of layout, start and injection, what differs between loops, loop count and
recomputation. The reference is plain autograd of `LoopedGPT.forward`.
"""

from itertools import cycle, product
from typing import Any, get_args

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.data.stream.batch import make_inputs
from pretrain.data.stream.labels import IGNORED
from pretrain.model.hashed_numbers import noise_salt, row_keys
from pretrain.model.loop.residual_scale import EXPONENTS, ResidualScale
from pretrain.model.loop.tables import EXITS, FINAL_NORMS, INJECTIONS, PER_LOOP, RESIDUALS, STARTS
from pretrain.model.loss import loss_sums
from tests.distributed.cases import (
    SEPARATORS,
    SEQ_LEN,
    Reference,
    gradient_errors,
    make_rows,
    one_step,
    tiny_config,
    tokens_in_the_block,
    world_size,
)
from tests.distributed.pairwise import pairwise
from tests.distributed.pool import RankPool
from tests.distributed.test_parity import TOLERANCE, Layout
from tests.support.loop_designs import MODELS

WITH_INPUT = [name for name in INJECTIONS if name != "none"]
BOUNDARIES = [
    *product(["prelude"], INJECTIONS, ["later"]),
    *((start, name, "every") for name, start in zip(WITH_INPUT, cycle(reversed(STARTS)))),
    ("noise", WITH_INPUT[0], "first"),
]
"""Start state, injection and the passes at which it acts: all of each."""
LOSSES: dict[str, dict[str, Any]] = {  # what a gate expects is under its name
    "last": {},
    "uniform": {"over": "every"},
    "linear": {"over": "every", "weights": "linear"},
    "given": {"over": "every", "weights": (1.0, 3.0)},
    **{name: {"over": "expected", "prior": "geometric", "prior_weight": 0.3} for name in EXITS if name != "none"},
    "consistent": {"over": "consistent", "short_weight": 0.3, "consistency_weight": 0.7},
}
STREAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{name: {"final_norm": name} for name in FINAL_NORMS if name != "end"},
    **{name: {"residual": name} for name in RESIDUALS if name != "plain"},
    "static": {"residual": "hyper", "hyper": {"streams": 3, "dynamic": False}},
}
"""Of the residual stream: one, normed inside the loop or before the coda too, or several."""
KEYS: dict[str, dict[str, Any]] = {
    "own": {},
    "first": {"keys": "first"},
    "window": {"keys": "first", "keys_window": 3},
    "every second": {"keys": "every", "keys_every": 2},
    "every third": {"keys": "every", "keys_every": 3},
}
FACTORS: dict[str, list[Any]] = {
    "layout": [Layout(1, 1, 1), Layout(2, 1, 1, sequence=True), Layout(2, 2, 1), Layout(1, 2, 2), Layout(1, 4, 1)],
    "boundary": BOUNDARIES,
    "per_loop": list(PER_LOOP),
    "num_loops": [1, 2, 4],
    "recompute": ["none", "loop", "layer", "offload", "segment"],
    "residual_scale": list(get_args(ResidualScale)),
    "loss": list(LOSSES),
    "keys": list(KEYS),
    "streams": list(STREAMS),
}


def _goes_together(keys: str, per_loop: str, streams: str, residual_scale: str = "one", **_: Any) -> bool:
    has_one_stream = "residual" not in STREAMS[streams]
    return (keys in ("own", "window") or per_loop != "lora") and (residual_scale not in EXPONENTS or has_one_stream)


def _reaches_keys(keys: str, loops: tuple[int, int], **_: Any) -> bool:
    """Whether gradients flow through a loop that computes keys, in any loop count up to this."""
    return keys in ("own", "window") or loops[1] >= min(KEYS[keys]["keys_every"], loops[0])


CASES = pairwise(FACTORS, _goes_together)


TRUNCATED = pairwise(
    {
        **{key: FACTORS[key] for key in ("layout", "recompute")},
        "boundary": [("prelude", name, "later") for name in WITH_INPUT] + [("noise", WITH_INPUT[1], "every")],
        "per_loop": ["none", "lora"],
        "loops": [(2, 1), (4, 1), (4, 3), (2, 2)],
        "keys": [name for name in KEYS if name != "first"],
        "streams": list(STREAMS),
    },
    lambda **case: _goes_together(**case) and _reaches_keys(**case),
)
"""`loops`: passes, and the last of them through which gradients flow."""
PER_SEQUENCE = pairwise(
    {
        "layout": [*FACTORS["layout"], Layout(1, 1, 2)],
        "boundary": [("prelude", "none", "later"), ("noise", "concat", "every"), ("prelude", "diagonal", "later")],
        "per_loop": ["none", "lora"],
        "recompute": ["none", "loop", "segment"],
        "micro_batch": [1, 2, 4],
        "document_mask": [False, True],
        "keys": FACTORS["keys"],
        "streams": list(STREAMS),
    },
    lambda layout, micro_batch, **rest: 8 // micro_batch >= layout.pipeline and _goes_together(**rest),
)


def config_of(case: dict[str, Any]) -> RunConfig:
    layout: Layout = case["layout"]
    loop = dict(zip(("start", "injection", "injection_at"), case["boundary"], strict=True))
    loop |= {key: case[key] for key in ("per_loop", "residual_scale") if key in case}
    loop |= {"exit": case.get("loss") if case.get("loss") in EXITS else "none"}
    loop |= KEYS[case["keys"]] | STREAMS[case["streams"]]
    return tiny_config(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        sequence=layout.sequence,
        model={
            "num_prelude_layers": 1,
            "num_coda_layers": 1,
            "num_loops": 3,
            "loop": loop,
            "norm_place": "sum" if case.get("residual_scale") in EXPONENTS else "before",
        },
        train={
            "recompute": case["recompute"],
            "loop_loss": LOSSES[case.get("loss", "last")],
            "z_loss_weight": 0.1,
            "micro_batch": case.get("micro_batch", 1),
        },
        document_mask=case.get("document_mask", False),
    )


@pytest.mark.parametrize("case", CASES, ids=["-".join(str(value) for value in case.values()) for case in CASES])
def test_a_step_equals_one_process(pool: RankPool, case: dict[str, Any]) -> None:
    layout, config = case["layout"], config_of(case)
    rows = make_rows(4 * layout.data)
    reference = Reference(config=config, shake=True)
    minimised = reference.minimised(rows, case["num_loops"])
    nll, _, norm = reference.backward(rows, case["num_loops"])

    reports = pool.run(one_step, config, rows, case["num_loops"], world_size=world_size(config, layout.data))

    for report in reports:
        (result,) = report.results
        assert not result.skipped
        if case["loss"] == "last":
            assert result.objective is None
        else:
            assert result.objective == pytest.approx(minimised, rel=TOLERANCE)
        assert result.loss == pytest.approx(nll, rel=TOLERANCE)
        assert result.grad_norm == pytest.approx(norm, rel=TOLERANCE)
    # what a step does not use, as the weights of later loops, has no gradient
    wanted = {name: torch.zeros_like(weight) for name, weight in reference.weights().items()} | reference.gradients()
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys()
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("case", TRUNCATED, ids=["-".join(str(value) for value in case.values()) for case in TRUNCATED])
def test_a_truncated_step_equals_one_process(pool: RankPool, case: dict[str, Any]) -> None:
    """The reference runs the first passes without gradient, then those of one graph."""
    layout, config, (num_loops, backprop_loops) = case["layout"], config_of(case), case["loops"]
    rows = make_rows(4 * layout.data)
    reference = Reference(config=config, shake=True)
    model, inputs = reference.model, make_inputs(rows, SEPARATORS.bos_id, document_mask=False)
    context = model.context(inputs.tokens, noise_rows=row_keys(inputs.tokens, noise_salt(config.run.seed, 0)))
    states, carried = model.begin(inputs.tokens, context)
    for loop in range(num_loops):
        with torch.set_grad_enabled(loop >= num_loops - backprop_loops):
            states = model.run_loop(model.enter(states, carried, loop), context, loop)
    total, nll = loss_sums(model, model.finish(states, context, num_loops), inputs.labels, z_loss_weight=0.1)
    num_supervised = (inputs.labels != IGNORED).sum()
    (total / num_supervised).backward()

    reports = pool.run(one_step, config, rows, num_loops, backprop_loops, world_size=world_size(config, layout.data))

    for report in reports:
        assert report.results[0].loss == pytest.approx((nll / num_supervised).item(), rel=TOLERANCE)
    wanted = {name: torch.zeros_like(weight) for name, weight in reference.weights().items()} | reference.gradients()
    assert wanted["embedding.weight"].abs().max() > 0  # by way of the injection
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys()
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize(
    "case", PER_SEQUENCE, ids=["-".join(str(value) for value in case.values()) for case in PER_SEQUENCE]
)
def test_sequences_with_loops_of_their_own_equal_each_alone(pool: RankPool, case: dict[str, Any]) -> None:
    layout, config = case["layout"], config_of(case)
    rows, counts = make_rows(8 * layout.data), [2, 1, 4, 2, 3, 1, 1, 2] * layout.data
    reference = Reference(config=config, shake=True)
    num_supervised, nll = (rows[:, 1] != IGNORED).sum(), 0.0
    for row, count in zip(rows.split(1), counts, strict=True):
        total, nll_of_row, _ = reference.loss(row, count)
        of_row = (row[:, 1] != IGNORED).sum().double() / num_supervised
        (total * of_row).backward()
        nll += (nll_of_row * of_row).item()

    reports = pool.run(one_step, config, rows, counts, world_size=world_size(config, layout.data))

    for report in reports:
        assert report.results[0].loss == pytest.approx(nll, rel=TOLERANCE)
    wanted = {name: torch.zeros_like(weight) for name, weight in reference.weights().items()} | reference.gradients()
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys()
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("num_stages", [1, 2])
def test_a_sequence_whose_loops_are_over_costs_nothing_more(pool: RankPool, num_stages: int) -> None:
    config = tiny_config(pipeline=num_stages, train={"micro_batch": 4}, model={"num_loops": 3})
    rows, counts = make_rows(8), [2, 1, 4, 2, 3, 1, 1, 2]
    found = pool.run(tokens_in_the_block, config, rows, counts, world_size=num_stages)
    assert found == [sum(counts) * SEQ_LEN] * num_stages


REGULARISED = [
    name for name, model in MODELS.items() if {"per_loop", "keys"}.isdisjoint(model["loop"]) and name != "plain"
]
"""Designs that blocks with weights of their own may have."""


@pytest.mark.parametrize(("name", "layout"), zip(REGULARISED, cycle([*FACTORS["layout"][1:], Layout(1, 2, 1)])))
def test_a_step_with_the_loop_regulariser_equals_one_process(pool: RankPool, name: str, layout: Layout) -> None:
    config = tiny_config(
        tensor=layout.tensor, pipeline=layout.pipeline, sequence=layout.sequence,
        model=MODELS[name] | {
            "num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 1, "num_loop_layers": 8,
            "loop_regulariser": {"weight": 0.5, "block_size": 4},
        },
    )  # fmt: skip
    rows, reference = make_rows(4 * layout.data), Reference(config=config, shake=True)
    nll, pull, norm = reference.backward(rows, 1)

    reports = pool.run(one_step, config, rows, 1, world_size=world_size(config, layout.data))

    for (result,) in (report.results for report in reports):
        assert result.loss == pytest.approx(nll, rel=TOLERANCE)
        assert result.regularisation == pytest.approx(pull, rel=TOLERANCE) and pull > 0
        assert result.grad_norm == pytest.approx(norm, rel=TOLERANCE)
    wanted = {name: torch.zeros_like(weight) for name, weight in reference.weights().items()} | reference.gradients()
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys() and max(errors.values()) <= TOLERANCE, errors
