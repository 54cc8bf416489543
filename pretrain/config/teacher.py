"""A frozen model that training imitates, as configuration: `train.teacher`."""

from pydantic import Field

from pretrain.schema.section import PathText, Section


class TeacherSection(Section):
    run: PathText | None = None
    """Directory of a run whose model is imitated, frozen, at its own loop count: the loss gains weight ·
    KL(teacher ‖ model) for each supervised token (Hinton et al. 2015, arXiv 1503.02531). For whole models:
    parallel.tensor=1, parallel.pipeline=1. Default: none."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the divergence, beside 1 for the text."""

    def without_effect(self) -> dict[str, str]:
        return {} if self.run is not None else {"weight": "run=null"}
