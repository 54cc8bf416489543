"""What the last pass leaves goes through the final norm of the model before the coda, and through the same one again
behind it (Huginn: Geiping et al. 2025, arXiv 2502.05171); without a coda it acts once."""

from typing import ClassVar

from pretrain.model.loop.variant import FinalNorm


class BeginsCoda(FinalNorm):
    begins_coda: ClassVar[bool] = True
