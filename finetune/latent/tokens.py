"""No latent thoughts: slots hold tokens (pauses), or there are none; one pass over everything."""

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.decoding import Decoding
from finetune.latent.forward import Passes
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import PassCount, Thoughts
from finetune.method.markers import Markers
from pretrain.model.gpt import LoopedGPT


class Tokens:
    """The methods of `finetune/latent/thinking.py` for rows without thoughts."""

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        assert num_slots == 0, "rows without thoughts have no latent slots"
        return Passes(model, batch, 0, num_loops).run_prefix()

    def think(
        self, decoding: Decoding, num_slots: int, markers: Markers, stop: StopClassifier | None = None
    ) -> Thoughts:
        slots = decoding.embed_same([markers.slot] * num_slots)
        inputs = torch.cat((decoding.embed_prompts(), slots), dim=1)
        return Thoughts(inputs[:, :0], [0] * len(inputs), inputs)

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        return PassCount([], num_prompt + num_slots, [])
