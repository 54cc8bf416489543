"""The latent forward on tensor-parallel ranks equals one process: loss and every gradient, in fp64."""

from typing import Any

import pytest
import torch

from finetune.latent.batch import LatentBatch
from pretrain.config.run import RunConfig
from tests.distributed.cases import VOCAB_SIZE, Reference, tiny_config
from tests.distributed.latent import Loss, distilled, loss_and_gradients, parallel, refined, sequential
from tests.distributed.pool import RankPool
from tests.support.latent_cases import SHAPES, loss_by_definition, make_batch, num_slots_of

TOLERANCE = 1e-10
TEACHER = make_batch([2, 1], [0, 0], [4, 6], vocab=VOCAB_SIZE)


def make_config(family: str, tensor: int) -> RunConfig:
    shape = {"num_loop_layers": 2, "num_prelude_layers": 1, "num_coda_layers": 1, "loop": {"injection": "add"}}
    return tiny_config(family, tensor=tensor, model=shape, train={"seq_len": 16})


def assert_ranks_equal(
    pool: RankPool, family: str, loss: Loss, batch: LatentBatch, num_loops: int, reference: Reference, nll: Any
) -> None:
    """Ranks against the loss and the gradients that `reference` holds."""
    wanted = reference.gradients()
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    arguments = (make_config(family, 2), loss, batch, TEACHER, num_slots_of(batch), num_loops)
    for rank, (found, parts) in enumerate(pool.run(loss_and_gradients, *arguments, world_size=2)):
        assert found == pytest.approx(nll.item(), rel=TOLERANCE)
        assert {part.name for part in parts} == set(wanted)
        for part in parts:
            difference = abs(part.values - part.of(wanted[part.name]).numpy()).max()
            assert difference <= TOLERANCE * largest, (
                f"rank {rank}, {part.name}: off by {difference:.1e} of {largest:.1e}"
            )


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("llama", shape)
        for shape in ("no thought, ragged", "one thought", "six thoughts, ragged", "mixed numbers of thoughts")
    ]
    + [("gpt2", "mixed numbers of thoughts"), ("olmo2", "mixed numbers of thoughts")],
)
@pytest.mark.parametrize(("num_loops", "dropout"), [(1, 0.0), (3, 0.0), (2, 0.2)])
def test_two_ranks_equal_whole_passes_on_one(
    pool: RankPool, family: str, num_loops: int, dropout: float, shape: str
) -> None:
    batch = make_batch(*SHAPES[shape], vocab=VOCAB_SIZE, dropout=dropout)
    reference = Reference(config=make_config(family, 1), shake=True)
    wanted = loss_by_definition(reference.model, batch, num_loops)
    wanted.backward()
    assert_ranks_equal(pool, family, sequential, batch, num_loops, reference, wanted)


@pytest.mark.parametrize("loss", [parallel, refined, distilled])
def test_going_further_is_the_same_on_two_ranks(pool: RankPool, loss: Loss) -> None:
    batch = make_batch([2, 1], [4, 3], [2, 3], vocab=VOCAB_SIZE)
    reference = Reference(config=make_config("llama", 1), shake=True)
    wanted = loss(reference.model, batch, TEACHER, num_slots_of(batch), 2)
    wanted.backward()
    assert_ranks_equal(pool, "llama", loss, batch, 2, reference, wanted)


def test_the_reference_takes_the_loss_that_training_takes() -> None:
    """Supervised positions alone through `loss_sums`, against all of them through the logits."""
    batch, model = (
        make_batch([2], [2], [3], vocab=VOCAB_SIZE),
        Reference(config=make_config("llama", 1), shake=True).model,
    )
    total = sequential(model, batch, TEACHER, 2, 2)
    torch.testing.assert_close(total, loss_by_definition(model, batch, 2), rtol=TOLERANCE, atol=0)
