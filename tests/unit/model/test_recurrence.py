"""Which layer is applied when, on the whole model and on its pipeline stages."""

from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.config.run import RunConfig
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.layers import KeyValueCache, Layer
from pretrain.model.loop.recurrence import Application, Recurrence, Stage

SIZES: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2, "ffn_size": 8}
LOOPED = ModelSection(**SIZES, num_prelude_layers=1, num_loop_layers=2, num_coda_layers=2, num_loops=3)
BLOCKS = ModelSection(**SIZES, num_prelude_layers=1, num_loop_layers=6, loop_regulariser={"block_size": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize("num_stages", [1, 2])
@pytest.mark.parametrize("config", [LOOPED, BLOCKS], ids=["looped", "blocks"])
def test_stages_share_the_applications_of_the_model(config: ModelSection, num_stages: int) -> None:
    stages = [Recurrence(config=config, stage=Stage(index=index, count=num_stages)) for index in range(num_stages)]
    passes = range(config.num_passes())
    in_order = [
        *stages[0].in_prelude(),
        *chain.from_iterable(stage.in_loop(loop) for loop in passes for stage in stages),
        *stages[-1].in_coda(len(passes)),
    ]
    assert [application.number for _, application in in_order] == list(range(config.effective_depth()))
    loops = [loop for loop in passes for _ in range(2)]
    outside = config.num_coda_layers * [None]
    assert [application.loop for _, application in in_order] == [None, *loops, *outside]
    weights = list(range(6)) if config is BLOCKS else 3 * [0, 1]
    assert [layer for layer, _ in in_order] == [0, *weights, *range(config.num_coda_layers)]
    assert sum(stage.num_applications() for stage in stages) == config.effective_depth()
    assert (
        sum(len(numbers) for stage in stages for numbers in stage.layers().values())
        == 1 + config.num_loop_layers + config.num_coda_layers
    )


@pytest.mark.parametrize("recompute", ["none", "loop", "layer"])
def test_a_layer_learns_its_application(recompute: str) -> None:
    model, seen = LoopedGPT(LOOPED, 4, recompute=recompute), []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[2])

    initialise(model, seed=0)
    for layer in (module for module in model.modules() if isinstance(module, Layer)):
        layer.register_forward_pre_hook(keep)
    model(torch.zeros(1, 4, dtype=torch.int64), 2)
    loops = [None, 0, 0, 1, 1, None, None]
    assert seen == [Application(number, loop) for number, loop in enumerate(loops)]


def test_a_cache_of_a_later_stage_knows_its_length() -> None:
    stage, cache = LoopedGPT(LOOPED, 4, stage=Stage(index=1, count=2)), KeyValueCache()
    initialise(stage, seed=0)
    context = stage.context(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    stage.run_loop(torch.ones(3, 8), context, 0)
    assert (cache.length, list(cache.entries)) == (3, [2])


def test_loop_counts_that_a_model_does_not_have_are_refused() -> None:
    LOOPED.require_loops("num_loops", (1, 7))
    BLOCKS.require_loops("num_loops", [1])
    with pytest.raises(ValueError, match=r"^num_loops=1, 0: loop counts start at 1$"):
        LOOPED.require_loops("num_loops", [1, 0])
    with pytest.raises(ValueError, match=r"^num_loops=1, 2: a block-regularised model has no loops to vary"):
        BLOCKS.require_loops("num_loops", [1, 2])
    drawn = {"loop_sampling": {"distribution": "uniform", "maximum": 3}}
    for sections in ({"train": drawn}, {"validation": {"num_loops": [1, 3]}}):
        with pytest.raises(ValueError, match=r"\.(maximum=3|num_loops=1, 3): a block-regularised model"):
            RunConfig.model_validate({"model": BLOCKS.model_dump(), **sections})
