"""Every valid configuration trains: random ones, on one rank, and on several against one.

`--configurations N` draws N for one rank (and N / 5 for several) in place of the few of the default suite.
"""

from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.config.run import OptimizerSection, RunConfig
from pretrain.model.config import ModelSection
from pretrain.model.loop.config import LoopSection
from pretrain.model.loop.tables import INJECTIONS, STARTS, TABLES
from pretrain.optim.loop_count import num_loops_at
from pretrain.parallel.engine import StepResult
from tests.distributed.cases import SEQ_LEN, VOCAB_SIZE, make_engine, make_rows, own_rows
from tests.distributed.pool import RankPool

NUM_ROWS, NUM_STEPS, LR = 8, 3, 1e-2
TOLERANCES = {"fp64": 1e-8, "fp32": 1e-5, "bf16": 3e-2}
"""Largest relative difference of losses and gradient norms between layouts over three steps."""
LAYOUTS = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 4, 1), (4, 1, 1), (1, 1, 4)]
"""Tensor-, pipeline- and data-parallel sizes."""


def choices(section: type, key: str) -> st.SearchStrategy[str]:
    """The names of this project that a key may have."""
    hint = get_type_hints(section)[key]
    ours = hint if get_origin(hint) is Literal else next(kind for kind in get_args(hint) if get_origin(kind) is Literal)
    return st.sampled_from(get_args(ours))


@st.composite
def loop_designs(draw: st.DrawFn) -> dict[str, Any]:
    """A choice of each kind of variant."""
    design = {kind: draw(choices(LoopSection, kind)) for kind in (*TABLES, "injection_at", "keys")}
    if design["keys"] == "first":
        design["keys_window"] = draw(st.sampled_from([0, 2]))
    if not STARTS[design["start"]].uses_input:  # the first pass must see the input
        design["injection_at"] = draw(st.sampled_from(["every", "first"]))
        design["injection"] = draw(st.sampled_from([name for name in INJECTIONS if name != "none"]))
    return design


@st.composite
def configurations(draw: st.DrawFn, precisions: tuple[str, ...], layouts: list[tuple[int, int, int]]) -> Any:
    """(configuration, data-parallel size); what the configuration refuses is drawn again."""
    tensor, pipeline, data = draw(st.sampled_from(layouts))
    regularised = draw(st.booleans())
    design = draw(loop_designs())
    loops = 1 if regularised else draw(st.integers(1, 3))
    model = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "init_std": 0.2,
        "num_attention_heads": draw(st.sampled_from([2, 4])),
        "num_key_value_heads": draw(st.sampled_from([None, 1, 2, 4])),
        "head_size": draw(st.sampled_from([None, 2, 6])),
        "ffn_size": draw(st.sampled_from([8, 24])),
        "num_prelude_layers": draw(st.integers(0, 2)),
        "num_loop_layers": draw(st.sampled_from([1, 2, 4])),
        "num_coda_layers": draw(st.integers(0, 2)),
        "num_loops": loops,
        "tied_head": draw(st.booleans()),
        "norm_epsilon": draw(st.sampled_from([1e-6, 1e-2])),
        "rope_theta": draw(st.sampled_from([100.0, 1e4])),
        "loop": design | ({"per_loop": "none", "keys": "own"} if regularised else {}),
        **{
            key: draw(choices(ModelSection, key))
            for key in ("norm", "norm_place", "qk_norm", "positions", "activation", "bias")
        },
    }
    if regularised:
        model["loop_regulariser"] = {"weight": 0.5, "block_size": draw(st.sampled_from([1, 2]))}
    losses = [
        "last",
        *([] if regularised else ["every", "consistent"]),
        *(["expected"] if design["exit"] != "none" else []),
    ]
    train = {
        "loop_loss": {"over": draw(st.sampled_from(losses))},
        "steps": 10,
        "seq_len": SEQ_LEN,
        "global_batch": NUM_ROWS,
        "micro_batch": draw(st.sampled_from([1, 2])),
        "precision": draw(st.sampled_from(precisions)),
        "recompute": draw(st.sampled_from(["none", "loop", "layer", "offload", "segment"])),
        "z_loss_weight": draw(st.sampled_from([0.0, 1e-2])),
        "loop_sampling": {
            "distribution": "fixed"
            if regularised
            else draw(st.sampled_from(["fixed", "uniform", "poisson", "poisson_lognormal"])),
            "maximum": 4,
        },
    }
    optimizer = {
        "name": draw(choices(OptimizerSection, "name")),
        "schedule": draw(choices(OptimizerSection, "schedule")),
        "warmup_steps": 0,
        "epsilon": 1e-2,  # above the rounding error of gradients, which AdamW would turn into steps of size lr
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "clip_grad_norm": draw(st.sampled_from([0.0, 0.5])),
    }
    try:
        config = RunConfig.model_validate(
            {
                "model": model,
                "parallel": {"tensor": tensor, "pipeline": pipeline, "sequence": tensor > 1 and draw(st.booleans())},
                "data": {"document_mask": draw(st.booleans())},
                "train": train,
                "optimizer": optimizer,
            }
        )
    except ValueError:
        assume(False)
    assume(NUM_ROWS // data // config.train.micro_batch >= pipeline)
    # Muon makes steps of one size of gradients of any size, rounding included: 1.3e-5 between layouts in fp32
    assume(len(layouts) == 1 or (config.optimizer.name, config.train.precision) != ("muon", "fp32"))
    return config, data


def train(config: RunConfig) -> tuple[list[StepResult], list[float], list[float]]:
    """Some steps at loop counts as a run draws them; validation at two loop counts before and after them."""
    engine, groups = make_engine(config)
    loops = [1] if config.model.num_blocks > 1 else [1, 3]

    def rows(number: int) -> Tensor:
        return own_rows(make_rows(NUM_ROWS, number), groups)

    def validate() -> list[float]:
        found = engine.evaluate(rows(NUM_STEPS), loops)
        return [total / found.num_supervised for total in found.sums]

    before = validate()
    results = [
        engine.train_step(rows(step), num_loops_at(config.model, config.train, config.run.seed, step), LR)
        for step in range(NUM_STEPS)
    ]
    return results, before, validate()


def examples(count: int) -> settings:
    checks = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


def test_every_configuration_trains_on_one_rank(pool: RankPool, request: pytest.FixtureRequest) -> None:
    @examples(request.config.getoption("--configurations"))
    @given(drawn=configurations(("fp64", "fp32", "bf16"), [(1, 1, 1)]))
    def trains(drawn: tuple[RunConfig, int]) -> None:
        ((results, before, after),) = pool.run(train, drawn[0], world_size=1)
        assert not any(result.skipped for result in results)
        assert all(map(isfinite, after))
        assert all(one != other for one, other in zip(before, after, strict=True))

    trains()


def test_every_layout_of_a_configuration_equals_one_rank(pool: RankPool, request: pytest.FixtureRequest) -> None:
    @examples(max(1, request.config.getoption("--configurations") // 5))
    @given(drawn=configurations(("fp64", "fp32"), LAYOUTS))
    def equals(drawn: tuple[RunConfig, int]) -> None:
        config, data = drawn
        alone = config.parallel.model_copy(update={"tensor": 1, "pipeline": 1, "sequence": False})
        ((wanted, _, wanted_losses),) = pool.run(train, config.model_copy(update={"parallel": alone}), world_size=1)
        tolerance = TOLERANCES[config.train.precision]
        size = config.ranks_per_replica * data
        for results, _, losses in pool.run(train, config, world_size=size):
            for result, one in zip(results, wanted, strict=True):
                assert not result.skipped
                assert result.loss == pytest.approx(one.loss, rel=tolerance)
                assert result.regularisation == pytest.approx(one.regularisation, rel=tolerance, abs=tolerance)
                assert result.grad_norm == pytest.approx(one.grad_norm, rel=tolerance)
            assert losses == pytest.approx(wanted_losses, rel=tolerance)

    equals()
