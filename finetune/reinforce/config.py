"""The configuration of reinforcement learning on answers: one typed, strict, documented tree, read like the others
(`pretrain/config/read.py`).

    deepspeed finetune/grpo.py --config configs/finetune/prosqa_hard_small_grpo.yaml [a.b=c ...]

How the model reasons and answers (method, thoughts, tokenizer) is that of the run it starts from; a pretrained run
writes its answer at once. Every field is documented by the line below it.
"""

from typing import Literal

from pydantic import Field, model_validator

from finetune.config import (
    ConstantAdamWSection,
    EngineSection,
    EngineTrainSection,
    ExamplesSection,
)
from pretrain.config.layout import Layout, lay_out
from pretrain.config.logging import LoggingSection
from pretrain.config.profile import ProfileSection
from pretrain.config.ranks import RanksSection
from pretrain.config.run import CommonCheckpointSection, EntryConfig, ParallelSection
from pretrain.schema.section import Section, require_divides

BATCH = "rollout.questions · rollout.group_size"


class GrpoDataSection(Section):
    train: ExamplesSection = ExamplesSection()
    """Questions to learn from, with the answers that are rewarded."""
    validation: ExamplesSection = ExamplesSection()
    """Questions that are answered, greedily, while the run goes on."""
    test: ExamplesSection = ExamplesSection()
    """Questions that the last weights are scored on at the end. Default: none."""


class RolloutSection(Section):
    questions: int = Field(default=32, gt=0)
    """Questions of a step over all ranks."""
    group_size: int = Field(default=8, gt=1)
    """G: answers that are drawn to each; a question teaches by how these differ."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the text that is drawn."""
    thought_noise: float = Field(default=0.0, ge=0)
    """Standard deviation of what is added to every number of a latent thought before it re-enters; needed by methods
    with thoughts, whose answers would not differ in anything but their text."""
    max_new_tokens: int = Field(default=128, gt=0)
    """Longest answer, reasoning in text included."""
    batch: int = Field(default=256, gt=0)
    """Answers drawn together on a rank; changes no result."""


class GrpoSection(Section):
    over: Literal["last", "every"] = "last"
    """Loops whose predictions are rewarded: the last, which the answer is drawn from, or every one of them, as if it
    had drawn it (RLTT); for answers without thoughts."""
    advantage: Literal["normalised", "centred"] = "normalised"
    """Reward less the group's mean, divided by the group's standard deviation (GRPO) or not (Dr. GRPO)."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """ε: probabilities gain nothing by falling below 1 - ε of those that the answers were drawn with."""
    clip_high: float | None = Field(default=None, gt=0)
    """The same for rising above 1 + it (DAPO has it larger). Default: clip."""
    thoughts: Literal["pathwise", "likelihood"] = "pathwise"
    """How latent thoughts learn: by the gradient of the text's probability, which runs back through them; or as actions
    of their own, each with the probability of its noise (Latent-GRPO)."""
    kl_weight: float = Field(default=0.0, ge=0)
    """β: weight of the divergence from the run that training started from, which is then held in memory."""


class GrpoTrainSection(EngineTrainSection):
    steps: int = Field(default=200, gt=0, le=10_000_000)
    """Times that answers are drawn."""
    updates: int = Field(default=1, gt=0)
    """Optimizer steps on the answers of a step."""
    num_loops: int | None = Field(default=None, gt=0)
    """L. Default: that of checkpoint.init_from."""


class GrpoValidationSection(Section):
    every: int = Field(default=50, gt=0)
    """Steps between validations; there is one before the first step and one after the last."""
    batch: int = Field(default=64, gt=0)
    """Questions answered together on a rank; changes no result."""


class GrpoCheckpointSection(CommonCheckpointSection):
    every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0 = only at the end and on a signal."""


class GrpoConfig(EntryConfig):
    data: GrpoDataSection = GrpoDataSection()
    rollout: RolloutSection = RolloutSection()
    grpo: GrpoSection = GrpoSection()
    train: GrpoTrainSection = GrpoTrainSection()
    optimizer: ConstantAdamWSection = ConstantAdamWSection()
    engine: EngineSection = EngineSection()
    validation: GrpoValidationSection = GrpoValidationSection()
    checkpoint: GrpoCheckpointSection = GrpoCheckpointSection()
    logging: LoggingSection = LoggingSection()
    ranks: RanksSection = RanksSection()
    profile: ProfileSection = ProfileSection()

    @property
    def ranks_per_replica(self) -> int:
        return self.engine.tensor

    @property
    def parallel(self) -> ParallelSection:
        return ParallelSection(tensor=self.engine.tensor)

    @property
    def num_rollouts(self) -> int:
        """Answers drawn in a step over all ranks."""
        return self.rollout.questions * self.rollout.group_size

    @model_validator(mode="after")
    def _check_together(self) -> "GrpoConfig":
        if not self.data.train.is_given or not self.data.validation.is_given:
            raise ValueError("data.train and data.validation: each needs a path or a task")
        if self.checkpoint.init_from is None:
            raise ValueError(
                "checkpoint.init_from (--init): name the run whose answers are to be rewarded; one that has learnt "
                "nothing gives no right answer to learn from"
            )
        if self.grpo.clip_high is not None and self.grpo.clip_high < self.grpo.clip:
            raise ValueError(f"grpo.clip_high={self.grpo.clip_high} is below grpo.clip={self.grpo.clip}: leave it out")
        require_divides(BATCH, self.num_rollouts, "train.micro_batch", self.train.micro_batch)
        return self


def check_layout(config: GrpoConfig, world_size: int) -> Layout:
    """The layout of a run: every rank draws all answers to its questions.

    Raises:
        ValueError: naming the key and value that do not fit this number of ranks.
    """
    replica = ("engine.tensor", config.ranks_per_replica)
    layout = lay_out(world_size, replica, (BATCH, config.num_rollouts), config.train.micro_batch)
    require_divides("rollout.questions", config.rollout.questions, "data-parallel size", layout.data_parallel)
    return layout


def ledger(config: GrpoConfig, layout: Layout) -> str:
    """The answers of a step as a product, and how they are trained on."""
    rollout, train = config.rollout, config.train
    return (
        f"{rollout.questions} questions x {rollout.group_size} answers = {train.micro_batch} answers x "
        f"{layout.micro_batches} accumulated x {layout.data_parallel} data-parallel ranks, {train.updates} "
        f"update{'s' * (train.updates > 1)}"
    )
