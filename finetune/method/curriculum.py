"""The curriculum as a sampler: how much of an example's reasoning is removed, and how many slots replace it.

Stage 0 is the whole chain. Stage k replaces the first k steps by k · c slots (or, in iCoT, removes the first tokens of
the chain); the last stage removes all text and keeps the slots of the stage before (Hao et al. 2024, arXiv 2412.06769,
sections 3 and 4.2; Deng et al. 2024, arXiv 2405.14838). An example is a function of (seed, epoch, number of the
example): it needs no stored state, is the same on all ranks and workers, and a resumed run sees what the uninterrupted
one would have seen.
"""

import math
from typing import NamedTuple

from pydantic import Field

from finetune.method.methods import Method, Slots
from pretrain.keyed_hash import uniform
from pretrain.schema.section import Section


class CurriculumSection(Section):
    num_stages: int = Field(default=6, ge=0)
    """Number of stages, without stage 0 and the last one, which has no text of the chain."""
    first_stage_epochs: int = Field(default=5, ge=0)
    """Epochs of stage 0."""
    epochs_per_stage: int = Field(default=5, gt=0)
    """Epochs of every other stage; the last one lasts to the end."""
    thoughts_per_step: int = Field(default=1, ge=0)
    """c: slots of latent thoughts (or pauses) for each removed step."""
    pad_thoughts: bool = True
    """Give a chain shorter than the stage all slots of the stage; false: c for each of its steps."""
    tokens_per_stage: int = Field(default=8, gt=0)
    """Tokens that a stage removes, in methods that remove tokens (iCoT)."""
    gradual: bool = False
    """Remove the tokens of a stage one at a time, evenly over its steps, as the code of iCoT does; false: all at its
    start."""
    smoothing: float = Field(default=4.0, gt=0)
    """λ of iCoT: o further tokens are removed with a probability proportional to exp(-λ·o)."""
    uniform_prob: float = Field(default=0.0, ge=0, le=1)
    """Share of the examples of an epoch whose stage is drawn uniformly, up to the length of their chain; beyond
    num_stages it is the last one."""

    @property
    def last_stage(self) -> int:
        """The stage without text."""
        return self.num_stages + 1

    @property
    def max_slots(self) -> int:
        """Slots of the last stages."""
        return self.thoughts_per_step * self.num_stages

    def slots_of(self, method: Method) -> Slots | None:
        """The slots of a method; None where no stage has any."""
        return method.slots if self.max_slots else None


class Cut(NamedTuple):
    """What is done to one example."""

    removed: int
    """Steps, or tokens, removed from the front of the chain."""
    num_slots: int


def final_stage(curriculum: CurriculumSection, method: Method) -> int:
    """The stage that a method ends in."""
    return {"all": curriculum.last_stage, "first": 0, "last": curriculum.last_stage}[method.stages]


def stage_at(curriculum: CurriculumSection, method: Method, epoch: int) -> int:
    """The stage of an epoch, from 0 to `last_stage`."""
    if method.stages != "all":
        return final_stage(curriculum, method)
    if epoch < curriculum.first_stage_epochs:
        return 0
    return min(1 + (epoch - curriculum.first_stage_epochs) // curriculum.epochs_per_stage, curriculum.last_stage)


def num_held_back(curriculum: CurriculumSection, method: Method, epoch: int, progress: float) -> int:
    """Tokens of the stage that are not removed yet when this share of an epoch, in [0, 1), is over: all of them at its
    start in a gradual removal, in others none."""
    stage = stage_at(curriculum, method, epoch)
    if not curriculum.gradual or not 0 < stage < curriculum.last_stage:
        return 0
    done = (epoch - curriculum.first_stage_epochs) % curriculum.epochs_per_stage + progress
    return curriculum.tokens_per_stage - int(done * curriculum.tokens_per_stage / curriculum.epochs_per_stage + 1e-9)


def cut_at(curriculum: CurriculumSection, method: Method, stage: int, chain_length: int, extra: int = 0) -> Cut:
    """What a stage (from 0 to `last_stage`) does to a chain, whose length is in the unit that the method removes;
    `extra` tokens are removed beyond those of the stage (iCoT's smoothing)."""
    num_slots = 0
    if method.slots is not None:
        kept_stage = min(stage, curriculum.num_stages)
        num_slots = curriculum.thoughts_per_step * (
            kept_stage if curriculum.pad_thoughts else min(kept_stage, chain_length)
        )
    if stage == curriculum.last_stage:
        return Cut(chain_length, num_slots)
    per_stage = {"step": 1, "token": curriculum.tokens_per_stage}[method.removal]
    removed = max(stage * per_stage + extra, 0)
    return Cut(min(removed, chain_length), num_slots)


def draw_cut(
    curriculum: CurriculumSection,
    method: Method,
    seed: int,
    epoch: int,
    example: int,
    chain_length: int,
    progress: float = 0.0,
) -> Cut:
    """What is done to an example, given by its number, in an epoch, from 0, of which a share (`progress`) is over; the
    rest as in `cut_at`."""
    stage = stage_at(curriculum, method, epoch)
    mixes, which, smooth = (
        uniform(f"curriculum/{purpose}/{seed}/{epoch}/{example}") for purpose in ("mix", "stage", "smooth")
    )
    if method.stages == "all" and mixes < curriculum.uniform_prob:
        stage = min(int(which * (1 + chain_length)), curriculum.last_stage)
    extra = int(-math.log(1 - smooth) / curriculum.smoothing) if method.removal == "token" else 0
    held_back = num_held_back(curriculum, method, epoch, progress)
    return cut_at(curriculum, method, stage, chain_length, extra - held_back)
