"""The loss of every loop of one forward pass, as the ring computes it, on one device without a ring."""

from functools import partial

import torch
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop_loss import LoopLosses, LoopObjective, ShortRun
from pretrain.model.recompute import recomputed


def loss_of_every_loop(
    model: LoopedGPT, tokens: Tensor, num_loops: int, mask: Tensor | None = None, short: ShortRun | None = None
) -> Tensor:
    """Its part that is still to be differentiated; that of the earlier loops has been. With a short run, of that and
    the last loop alone."""
    objective = LoopObjective(
        weights=[1 / num_loops] * num_loops, num_supervised=torch.tensor(1.0), z_loss_weight=0.0, short=short
    )
    losses, context = LoopLosses(model, objective, tokens), model.context(tokens, mask=mask)
    states, carried = model.begin(tokens, context)
    for loop in range(num_loops):
        run = partial(model.run_pass, context=context, loop=loop)
        states = recomputed(run, context.kept, states, carried) if model.recomputes_segments else run(states, carried)
        if loop < num_loops - 1:
            states = losses.after_loop(states, context, loop)
    return losses.last(model.finish(states, context, num_loops))[0]
