"""Self-distillation from reasoning in text into latent thoughts (CODI, arXiv 2502.21074).

One model is teacher and student. The teacher reads the chain in text, the student has thoughts in place of steps; both
end with the same answer. The position that predicts its first token, after the mark of an answer, depends on all of the
reasoning. After every application of every layer, the student's state there is pulled towards the teacher's, which has
no gradient:

    L = Σ over rows of the mean over applications l of mean |student_l - stop_gradient(teacher_l)| / std(teacher_l).

It is added to both cross-entropies with a weight (in the published code, zhenyi4/codi, 1 for GPT-2 and 20 for Llama 3.2
1B). Differences from CODI: the std is that of the row's own state over its width, not of the batch, so that the loss
does not depend on how a batch is cut; every loop counts as a layer; a state is taken as it leaves its layer, before the
final norm; thoughts re-enter as in Coconut, without a projector (CODI with GPT-2: 42.5 % without, 43.7 % with), so that
the model and its checkpoints do not change.

Cost: a forward and backward pass over the whole chain; the comparison itself is a product of one row per layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.latent.attention import LatentCache
from finetune.latent.batch import LatentBatch, MicroBatch, StepBatch
from finetune.latent.thinking import Tokens
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import Layer

CODI_WEIGHT = 1.0
"""Of the distance, where the configuration gives none."""
WatchedStates = dict[int, Tensor]
"""States [b, d] by number of the layer application, in their order."""


@contextmanager
def watch_layers(model: LoopedGPT, places: Tensor) -> Iterator[WatchedStates]:
    """Keep the state of one position of every row after every layer application of the latent forward that runs inside.

    Args:
        model: keeps its activations (`recompute` is "none").
        places: int64 [b], in the batch; a negative one gives zeros.

    Yields:
        The states, filled during the forward; gradients flow through them.
    """
    assert model.recompute == "none", "a recomputed layer would be watched twice"
    watched: WatchedStates = {}

    def keep(_: nn.Module, inputs: tuple[Any, ...], states: Tensor) -> None:
        _, context, application = inputs
        number = application.number
        cache = context.cache
        assert isinstance(cache, LatentCache) and cache.places is not None, "only a latent forward can be watched"
        if cache.segment == "trial":
            return
        # [b, s], at most one in a row, in one segment only
        if application.loop is not None:
            states = model.design.residual.combine(states)
        is_place = (cache.places == places[:, None]).to(states.dtype)
        picked = torch.bmm(is_place[:, None], states.view(context.batch, -1, states.shape[-1]))[:, 0]
        watched[number] = watched[number] + picked if number in watched else picked

    handles = [layer.register_forward_hook(keep) for layer in model.modules() if isinstance(layer, Layer)]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def distillation_loss(student: WatchedStates, teacher: WatchedStates, places: Tensor) -> Tensor:
    """Distance of the student's states from the teacher's, which get no gradient: a scalar in fp32 or wider, the sum
    over rows with a place (int64 [b]) that is not negative."""
    assert student.keys() == teacher.keys(), "teacher and student pass the same layers"
    # [applications, b, d]
    ours, theirs = (torch.stack([states[number] for number in sorted(student)]) for states in (student, teacher))
    wide = torch.promote_types(ours.dtype, torch.float32)
    theirs = theirs.detach().to(wide)
    is_compared = places >= 0
    deviation = torch.where(is_compared, theirs.std(dim=-1), 1.0)
    distance = ((ours.to(wide) - theirs).abs().mean(dim=-1) / deviation).mean(dim=0)  # [b]
    return torch.where(is_compared, distance, 0.0).sum()


class DistillationTerm:
    """The teacher's part of the loss: its own negative log-likelihood, and the weighted distance to its states."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._student: WatchedStates = {}

    @contextmanager
    def watch(self, model: LoopedGPT, batch: LatentBatch) -> Iterator[None]:
        assert batch.answer is not None
        with watch_layers(model, batch.answer) as self._student:
            yield

    def loss(self, model: LoopedGPT, states: Tensor, micro_batch: MicroBatch, step: StepBatch) -> Tensor:
        batch, teacher = micro_batch.batch, micro_batch.added
        assert isinstance(teacher, LatentBatch) and batch.answer is not None and teacher.answer is not None
        with watch_layers(model, teacher.answer) as taught:
            teacher_states = Tokens().states(model, teacher, 0)
        distance = distillation_loss(self._student, taught, batch.answer)
        teacher_loss, _ = teacher.text_loss(model, teacher_states)
        return teacher_loss / step.added.targets + self._weight * distance / step.num_examples
