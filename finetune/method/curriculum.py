"""The curriculum as a sampler: how much of an example's reasoning is taken away, and how many slots stand in its place.

Stage 0 is the whole chain. Stage k removes the first k steps (or, as iCoT, the first tokens of the chain) and puts k ·
c slots there; the last stage removes all text and keeps the slots of the stage before (Hao et al. 2024, arXiv
2412.06769, sections 3 and 4.2; Deng et al. 2024, arXiv 2405.14838). What an example looks like is a function of (seed,
epoch, number of the example): nothing is stored, no rank or worker shows in it, and a resumed run sees what the
uninterrupted one would have seen.
"""

import math
from typing import NamedTuple

from pydantic import Field

from finetune.method.methods import Method, Slots
from pretrain.config.section import Section
from pretrain.keyed_hash import uniform


class CurriculumSection(Section):
    num_stages: int = Field(default=6, ge=0)
    """Stages after stage 0, the last one, without any text of the chain, not counted."""
    first_stage_epochs: int = Field(default=5, ge=0)
    """Epochs of stage 0."""
    epochs_per_stage: int = Field(default=5, gt=0)
    """Epochs of every other stage; the last one lasts to the end."""
    thoughts_per_step: int = Field(default=1, ge=0)
    """c: slots of latent thoughts (or pauses) for each removed step."""
    pad_thoughts: bool = True
    """A chain shorter than the stage gets the slots of the stage all the same; false gives it c for each step that it
    has."""
    tokens_per_stage: int = Field(default=8, gt=0)
    """Tokens that a stage removes, where tokens are removed (iCoT)."""
    smoothing: float = Field(default=4.0, gt=0)
    """λ of iCoT: o tokens more are removed with a probability proportional to exp(-λ·o)."""
    uniform_prob: float = Field(default=0.0, ge=0, le=1)
    """Share of the examples of an epoch whose stage is drawn uniformly from all up to the length of their chain."""

    @property
    def last_stage(self) -> int:
        """Number of the stage without text."""
        return self.num_stages + 1

    @property
    def max_slots(self) -> int:
        """Slots of the last stages."""
        return self.thoughts_per_step * self.num_stages

    def slots_of(self, method: Method) -> Slots | None:
        """What fills the slots of a method; None where it has none in any stage."""
        return method.slots if self.max_slots else None


class Cut(NamedTuple):
    """What becomes of one example."""

    removed: int
    """Steps, or tokens, removed from the front of the chain."""
    num_slots: int
    """Slots in place of what was removed."""


def final_stage(curriculum: CurriculumSection, method: Method) -> int:
    """The stage that a method ends in."""
    return 0 if method.stages == "first" else curriculum.last_stage


def stage_at(curriculum: CurriculumSection, method: Method, epoch: int) -> int:
    """The stage of an epoch, from 0 to `last_stage`."""
    if method.stages != "all":
        return final_stage(curriculum, method)
    if epoch < curriculum.first_stage_epochs:
        return 0
    return min(1 + (epoch - curriculum.first_stage_epochs) // curriculum.epochs_per_stage, curriculum.last_stage)


def cut_at(curriculum: CurriculumSection, method: Method, stage: int, chain_length: int, extra: int = 0) -> Cut:
    """What a stage does to a chain.

    Args:
        curriculum: the settings.
        method: what is removed, and whether slots take its place.
        stage: from 0 to `last_stage`.
        chain_length: steps, or tokens, of the chain.
        extra: tokens removed beyond those of the stage (iCoT's smoothing).
    """
    num_slots = 0
    if method.slots is not None:
        kept_stage = min(stage, curriculum.num_stages)
        num_slots = curriculum.thoughts_per_step * (
            kept_stage if curriculum.pad_thoughts else min(kept_stage, chain_length)
        )
    if stage == curriculum.last_stage:
        return Cut(chain_length, num_slots)
    per_stage = curriculum.tokens_per_stage if method.removal == "token" else 1
    removed = stage * per_stage + (extra if stage else 0)
    return Cut(min(removed, chain_length), num_slots)


def draw_cut(
    curriculum: CurriculumSection, method: Method, seed: int, epoch: int, example: int, chain_length: int
) -> Cut:
    """What becomes of an example in an epoch.

    Args:
        curriculum: the settings.
        method: what is removed, and whether slots take its place.
        seed: of the run.
        epoch: from 0.
        example: its number in the data set.
        chain_length: its steps, or tokens.
    """
    stage = stage_at(curriculum, method, epoch)
    mixes, which, smooth = (
        uniform(f"curriculum/{purpose}/{seed}/{epoch}/{example}") for purpose in ("mix", "stage", "smooth")
    )
    if method.stages == "all" and mixes < curriculum.uniform_prob:
        stage = int(which * (1 + min(chain_length, curriculum.num_stages)))
    extra = int(-math.log(1 - smooth) / curriculum.smoothing) if method.removal == "token" else 0
    return cut_at(curriculum, method, stage, chain_length, extra)
