"""The configuration of a fine-tuning run: one typed, strict, documented tree, read like that of pretraining
(`pretrain/config/read.py`).

    deepspeed finetune/coconut.py --config configs/finetune/prosqa.yaml [a.b=c ...]

The defaults are the paper's for ProsQA (Hao et al. 2024, arXiv 2412.06769, section 4.2). What a method needs to be
different is in the files under `variants:`, by `method.name`. Every field is documented by the line below it.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from finetune.method.curriculum import CurriculumSection, final_stage, stage_at
from finetune.method.methods import METHODS, Method, MethodName, Term, names_of
from pretrain.config.layout import Layout, lay_out
from pretrain.config.logging import LoggingSection
from pretrain.config.profile import ProfileSection
from pretrain.config.ranks import RanksSection
from pretrain.config.run import (
    AdamWSection,
    CommonCheckpointSection,
    CommonTrainSection,
    EntryConfig,
    OptimizerSection,
    ParallelSection,
)
from pretrain.model.config import ModelSection
from pretrain.schema.section import PathText, Section

Precision = Literal["fp32", "bf16", "fp16"]


class ExamplesSection(Section):
    path: PathText | None = None
    """File of examples: {question, steps, answer} as a JSON list (.json) or a row a line (.jsonl), or lines
    `question||steps #### answer` (.txt), also gzipped."""
    step_separator: str | None = Field(default=None, min_length=1)
    """What stands between the steps of a .txt file. Default: each step is in << and >>, as in GSM8k-Aug."""
    task: str | None = None
    """Instead of a file: name of a reasoning task with steps (pretrain/tasks), whose examples are generated."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Difficulty of the task; its file documents the keys."""
    num_examples: int | None = Field(default=None, gt=0, le=100_000_000)
    """Number of examples: the first ones of the file, or generated ones. Default: all of the file."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of generated examples, so that runs of all seeds share them. Default: run.seed."""

    @model_validator(mode="after")
    def _check_kind(self) -> "ExamplesSection":
        if self.path is not None and self.task is not None:
            raise ValueError("data: examples come from a path or from a task, not from both")
        if self.step_separator is not None and self.path is None:
            raise ValueError("data: step_separator is for a file: set path")
        if self.task is not None and self.num_examples is None:
            raise ValueError(f"data: examples of task {self.task} are unlimited: set num_examples")
        return self

    def without_effect(self) -> dict[str, str]:
        return {"seed": "task=null"} if self.task is None else {}

    @property
    def is_given(self) -> bool:
        return self.path is not None or self.task is not None

    def named(self, split: str) -> str:
        """Where examples are from, for messages that number them."""
        return self.path or f"data.{split}"


class FinetuneDataSection(Section):
    train: ExamplesSection = ExamplesSection()
    """Examples to train on."""
    validation: ExamplesSection = ExamplesSection()
    """Examples that select the best checkpoint."""
    test: ExamplesSection = ExamplesSection()
    """Examples to score the best checkpoint on at the end. Default: none."""
    tokenizer: PathText | None = None
    """Tokenizer file, or "symbols:abc", for a model from scratch. Default: that of checkpoint.init_from."""


class MethodSection(Section):
    name: MethodName = "coconut"
    """Coconut, or one of the methods it is compared with."""
    markers_in_first_stage: bool = True
    """Put <bot><eot> after the question in stage 0 too, where there are no slots."""
    stop: Literal["count", "classifier"] = "count"
    """How thinking ends at inference: after a number of thoughts, or by a classifier of thoughts, which is trained
    too: with curriculum.pad_thoughts false, or all chains of a stage have as many and it learns but their number."""
    stop_weight: float = Field(default=1.0, gt=0)
    """Weight of that classifier's loss."""
    jacobi_passes: int | None = Field(default=None, ge=0)
    """Compute all thoughts of an example in parallel, in this many refining passes (PCCoT). Default: in sequence."""
    distillation_weight: float = Field(default=0.0, ge=0)
    """Weight of CODI's self-distillation from the whole chain into thoughts. Default: 1 in codi, none in other methods,
    to which a weight adds it."""
    step_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on the steps that slots replace, in sim_cot and lotus."""
    refinements: int = Field(default=0, ge=0)
    """R of lotus: passes that refine its latents, after a first one; each runs all loops of the model."""

    @property
    def term(self) -> Term | None:
        """The term that is added to the loss, but for the stop classifier's."""
        return "distillation" if self.distillation_weight else METHODS[self.name].term

    def without_effect(self) -> dict[str, str]:
        unread = {"stop_weight": "stop=count"} if self.stop == "count" else {}
        if self.term not in ("step_decoder", "slot_tokens"):
            unread["step_weight"] = f"name={self.name}"
        if self.name != "lotus":
            unread["refinements"] = f"name={self.name}"
        return unread


class EngineTrainSection(CommonTrainSection):
    """What the engine (`finetune/engine/engine.py`) needs."""

    micro_batch: int = Field(default=32, gt=0)
    precision: Precision = "fp32"
    """Type of weights and activations; optimizer state is fp32 in any case."""


class FinetuneTrainSection(EngineTrainSection):
    epochs: int = Field(default=50, gt=0, le=1_000_000)
    """Number of epochs."""
    effective_batch: int = Field(default=128, gt=0)
    """Examples of one optimizer step: micro_batch x accumulation x data-parallel ranks."""
    seq_len: int | None = Field(default=None, gt=0)
    """Longest sequence of a model from scratch, in tokens. Default: that of checkpoint.init_from."""
    num_loops: int | None = Field(default=None, gt=0)
    """L. Default: model.num_loops."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an element of the embeddings, of the probabilities of attention, and of what attention
    and feed-forward add (GPT-2's dropout, with which the published models were fine-tuned)."""


class ConstantAdamWSection(AdamWSection):
    """AdamW at a constant rate, with the defaults of fine-tuning."""

    lr: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0, at the start of the run; constant afterwards."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of all parameters."""
    clip_grad_norm: float = Field(default=0.0, ge=0)

    @property
    def schedule(self) -> OptimizerSection:
        """Warm-up, then a constant rate, for `learning_rate`."""
        return OptimizerSection(lr=self.lr, warmup_steps=self.warmup_steps, schedule="constant", min_lr_ratio=1.0)


class FinetuneOptimizerSection(ConstantAdamWSection):
    reset: Literal["never", "stage", "epoch"] = "stage"
    """When the moments are set to zero: never, at every new stage (as in the paper; in a gradual removal whenever a
    token more is removed), or at every epoch (as in its code)."""


class EngineSection(Section):
    zero_stage: int = Field(default=2, ge=0, le=3)
    """What DeepSpeed partitions over ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    tensor: int = Field(default=1, gt=0)
    """Ranks over which each weight matrix is split; the others are data-parallel."""


class FinetuneValidationSection(Section):
    every: int = Field(default=1, gt=0)
    """Epochs between validations; the last epoch always has one."""
    batch: int = Field(default=64, gt=0)
    """Questions answered together on a rank; changes no result."""
    max_new_tokens: int = Field(default=128, gt=0)
    """Longest answer, reasoning in text included."""


class FinetuneCheckpointSection(CommonCheckpointSection):
    every: int = Field(default=0, ge=0)
    """Steps between checkpoints, besides the one after every epoch; 0 = only those."""


class FinetuneConfig(EntryConfig):
    variants_of: ClassVar[str | None] = "method.name"

    model: ModelSection = ModelSection()
    data: FinetuneDataSection = FinetuneDataSection()
    method: MethodSection = MethodSection()
    curriculum: CurriculumSection = CurriculumSection()
    train: FinetuneTrainSection = FinetuneTrainSection()
    optimizer: FinetuneOptimizerSection = FinetuneOptimizerSection()
    engine: EngineSection = EngineSection()
    validation: FinetuneValidationSection = FinetuneValidationSection()
    checkpoint: FinetuneCheckpointSection = FinetuneCheckpointSection()
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
    def chosen_method(self) -> Method:
        return METHODS[self.method.name]

    @property
    def reaches_last_stage(self) -> bool:
        """Whether an epoch is in the stage that the method ends in, where the best weights are chosen."""
        stages = (self.curriculum, self.chosen_method)
        return stage_at(*stages, self.train.epochs - 1) == final_stage(*stages)

    @model_validator(mode="after")
    def _check_together(self) -> "FinetuneConfig":
        method = self.method
        if not self.data.train.is_given or not self.data.validation.is_given:
            raise ValueError("data.train and data.validation: each needs a path or a task")
        if self.checkpoint.init_from is None and (self.data.tokenizer is None or self.train.seq_len is None):
            raise ValueError(
                "a model from scratch needs data.tokenizer and train.seq_len; or name a run: "
                "checkpoint.init_from (--init)"
            )
        if self.checkpoint.init_from is not None and self.model != ModelSection():
            raise ValueError("model: its shape comes from checkpoint.init_from; leave the section out")
        needs_thoughts = {
            "stop=classifier": method.stop == "classifier",
            "jacobi_passes": method.jacobi_passes is not None,
            "distillation_weight": method.distillation_weight > 0,
        }
        if method.distillation_weight and self.chosen_method.term not in (None, "distillation"):
            raise ValueError(f"method.distillation_weight: {method.name} adds another term to the loss; leave it out")
        for name, is_set in needs_thoughts.items():
            if is_set and not self.chosen_method.thinks_in_sequence:
                names = names_of(lambda other: other.thinks_in_sequence)
                raise ValueError(f"method.{name} is for methods with thoughts ({names}), not for {method.name}")
        if self.chosen_method.term is not None and not self.curriculum.max_slots:
            raise ValueError(
                f"method.name={method.name} needs thoughts: set curriculum.thoughts_per_step and num_stages above 0"
            )
        if self.chosen_method.removal == "token" and "tokens_per_stage" not in self.curriculum.model_fields_set:
            raise ValueError(
                f"method.name={method.name} removes tokens, not steps: set curriculum.tokens_per_stage, and num_stages "
                "so that the stages remove the chain; under variants: of the file they are for this method alone"
            )
        if self.curriculum.gradual and self.chosen_method.removal != "token":
            raise ValueError(f"curriculum.gradual is for a method that removes tokens (icot), not {method.name}")
        if self.train.effective_batch < self.train.micro_batch:
            batch, micro_batch = self.train.effective_batch, self.train.micro_batch
            raise ValueError(f"train.effective_batch={batch} is smaller than train.micro_batch={micro_batch}")
        return self


def check_layout(config: FinetuneConfig, world_size: int) -> Layout:
    """The layout of a fine-tuning run.

    Raises:
        ValueError: naming the key and value that do not fit this number of ranks.
    """
    batch = ("train.effective_batch", config.train.effective_batch)
    return lay_out(world_size, ("engine.tensor", config.ranks_per_replica), batch, config.train.micro_batch)


def require_last_stage(config: FinetuneConfig, *, has_begun: bool = False) -> list[str]:
    """A warning if the epochs end before the stage in which the best weights are chosen.

    Args:
        config: of a run.
        has_begun: it goes on, perhaps from a version that took such epochs.

    Raises:
        ValueError: they do, and the run that begins is to be tested with its best weights.
    """
    if config.reaches_last_stage:
        return []
    stage = stage_at(config.curriculum, config.chosen_method, config.train.epochs - 1)
    problem = (
        f"train.epochs={config.train.epochs} ends in stage {stage}, before the last one, "
        f"{config.curriculum.last_stage}: no weights will be kept as the best, and data.test not be scored"
    )
    if config.data.test.is_given and not has_begun:
        raise ValueError(f"{problem}; raise it, or leave out data.test")
    return [problem]


def ledger(config: FinetuneConfig, layout: Layout) -> str:
    """The effective batch as a product."""
    train = config.train
    return (
        f"effective batch: {train.micro_batch} examples x {layout.micro_batches} accumulated x {layout.data_parallel} "
        f"data-parallel ranks = {train.effective_batch}"
    )
