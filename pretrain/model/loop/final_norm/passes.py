"""Each pass ends with the final norm of the model, with the same weights: what enters the next pass, what the exit sees
and, without a coda, what the head reads is normed, once (Ouro: Zhu et al. 2025, arXiv 2510.25741; Nanbeige 4.2, arXiv
2607.17805). A coda is followed by it once more."""

from typing import ClassVar

from pretrain.model.loop.variant import FinalNorm


class EndsPasses(FinalNorm):
    ends_passes: ClassVar[bool] = True
