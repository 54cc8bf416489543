"""The configuration of a pretraining run, and what that of fine-tuning has in common with it.

The line below a field gives its meaning, unit and default rule; `--help` prints it. Validators check and never change a
value, and what depends on other values is a property: the configuration in a run directory is what the user wrote plus
the defaults of the code. Reading files and overrides: `read.py`. What depends on the number of ranks: `layout.py`.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from pretrain.config.alarms import AlarmsSection
from pretrain.config.data import DataSection
from pretrain.config.hooks import HookSection
from pretrain.config.logging import LoggingSection
from pretrain.config.loop_loss import LoopLossSection
from pretrain.config.loop_sampling import GrowthSection, LoopSamplingSection, require_gradient
from pretrain.config.profile import ProfileSection
from pretrain.config.ranks import RanksSection
from pretrain.config.teacher import TeacherSection
from pretrain.model.config import ModelSection, Recompute
from pretrain.schema.plugin import PluginName
from pretrain.schema.section import PathText, Section, require_divides

Precision = Literal["fp64", "fp32", "bf16"]
BYTES: dict[Precision, int] = {"fp64": 8, "fp32": 4, "bf16": 2}
"""Of one number. Types of torch: `pretrain/device/hardware.py`."""
SYMBOLS_PREFIX = "symbols:"
"""Prefix of a tokenizer given inline, as its symbols."""


class RunSection(Section):
    name: str = Field(default="looped", pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the run; its directory is <run.root>/<run.name>. {a.b} in it stands for the value of key a.b."""
    root: PathText = "runs"
    """Folder that holds the run directories."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, of the data order and of the loop counts. Never combined with a rank."""

    @property
    def directory(self) -> Path:
        """<run.root>/<run.name>."""
        return Path(self.root) / self.name


class ParallelSection(Section):
    tensor: int = Field(default=1, gt=0)
    """Ranks over which each weight matrix is split."""
    pipeline: int = Field(default=1, gt=0)
    """Ranks in the ring; each owns 1/pipeline of the loop block. The data-parallel size is world size / (tensor ·
    pipeline)."""
    sequence: bool = False
    """Split the tokens of norms and residuals over the tensor-parallel ranks too (sequence parallelism)."""
    overlap: bool = False
    """Send gradients to the other data-parallel ranks as they are complete, while the last backward passes run, and
    gather the weights of a sharded optimizer while the next step begins."""
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    """In what gradients are sent to the other data-parallel ranks; they are added up in fp32 before and after. bf16 is
    half the bytes, and rounds each once; for a sharded optimizer (adamw)."""


class CommonTrainSection(Section):
    """What training has in both of its kinds, pretraining and fine-tuning."""

    micro_batch: int = Field(default=8, gt=0)
    """Sequences per forward pass of one rank."""
    deterministic: bool = False
    """Only deterministic kernels: two runs of the same configuration are bitwise equal on the same machine."""
    exit_after: float | None = Field(default=None, gt=0)
    """Minutes after which to save and exit cleanly, resumable. Default: run all steps."""


class TrainSection(CommonTrainSection):
    steps: int = Field(default=1000, gt=0)
    """Optimizer steps of the whole run."""
    seq_len: int = Field(default=512, gt=0)
    """Tokens per sequence."""
    global_batch: int = Field(default=64, gt=0)
    """Sequences per step over all ranks."""
    precision: Precision = "bf16"
    """bf16 = bf16 weights and activations with fp32 master weights and fp32 gradient reduction; fp64 is for tests."""
    recompute: Recompute | Literal["auto"] = "none"
    """Activations recomputed in the backward pass: none, those of feed-forwards alone (selective; no product is done
    again), all of a loop (keeps one state per loop), all of a layer (keeps one per layer), the same with those of a
    loop's layers on the host (offload; on a CPU as layer), or all of a segment of loops and then of each layer in it
    (least memory, one more forward pass); auto = of these the one with the fewest FLOPs that fits, by the plan, into
    the memory of a rank, none before selective."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a rank that recompute=auto plans with, in GiB. Default: 92 % of a GPU, or of a rank's share of a
    machine without."""
    compile: bool | None = None
    """torch.compile the layers, one by one: a loop is compiled once, whatever its count (on a CPU it needs a C++
    compiler). Default: on GPUs alone."""
    z_loss_weight: float = Field(default=0.0, ge=0)
    """Weight of mean(logsumexp(logits)^2) in the loss."""
    loop_loss: LoopLossSection = LoopLossSection()
    """Which loops the loss is of."""
    loop_sampling: LoopSamplingSection = LoopSamplingSection()
    """How the loop count of each step is chosen, as a function of run.seed, the step and train.steps alone."""
    backprop_loops: int | None = Field(default=None, gt=0)
    """Gradients reach back through the last so many loops of a step; earlier ones run without (Huginn's truncated
    back-propagation). Default: through all."""
    backprop_growth: GrowthSection = GrowthSection()
    """Grows train.backprop_loops over the steps."""
    teacher: TeacherSection = TeacherSection()
    """A frozen model that is imitated beside the text."""
    hooks: tuple[HookSection, ...] = ()
    """What looks at the run between its steps; its numbers become rows of diagnostics.jsonl (pretrain/EXTENDING.md)."""
    max_bad_steps: int = Field(default=10, gt=0)
    """Stop after this many steps in a row whose loss or gradient is not finite; all ranks agree to skip each."""

    def without_effect(self) -> dict[str, str]:
        found = {} if self.backprop_loops is not None else {"backprop_growth": "backprop_loops=null"}
        return found if self.recompute == "auto" else found | {"memory_gib": f"recompute={self.recompute}"}

    @property
    def chosen_recompute(self) -> Recompute:
        """`recompute`, of a configuration that does not leave it open any more (`pretrain/plan/policy.py`)."""
        assert self.recompute != "auto", "it is chosen before anything is built"
        return self.recompute


class AdamWSection(Section):
    """What AdamW needs; fine-tuning has defaults of its own."""

    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up from 0."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to AdamW's denominator."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; norms, biases and learned positions get none."""
    clip_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm, shared weights counted once; 0 = no clipping."""


class OptimizerSection(AdamWSection):
    name: Literal["adamw", "adafactor", "muon"] | PluginName = "adamw"
    """AdamW (fused, state sharded over data-parallel ranks); Adafactor (as in T5, its learning rate relative to the RMS
    of each weight; state replicated); or Muon for the matrices inside the model, with AdamW for embeddings, head, norms
    and biases (state replicated); or one of your own file (state replicated): pretrain/EXTENDING.md."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Muon's Nesterov momentum."""
    adamw_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of what Muon leaves to AdamW; it follows the same schedule. Default: optimizer.lr."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Final learning rate as a share of the peak."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warm-up; wsd = constant, then a linear decay over the last decay_steps."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Length of the wsd decay, in steps. Default: a fifth of train.steps."""

    def without_effect(self) -> dict[str, str]:
        unread = {"adamw": _OF_MUON, "adafactor": (*_OF_ADAMW, *_OF_MUON)}.get(self.name, ())
        shape = {"cosine": ("decay_steps",), "linear": ("decay_steps",), "constant": ("decay_steps", "min_lr_ratio")}
        return {
            **dict.fromkeys(unread, f"name={self.name}"),
            **dict.fromkeys(shape.get(self.schedule, ()), f"schedule={self.schedule}"),
        }


_OF_ADAMW, _OF_MUON = ("beta1", "beta2", "epsilon"), ("momentum", "adamw_lr")


class ValidationSection(Section):
    every: int = Field(default=200, ge=0)
    """Steps between validation losses, and one before a run with checkpoint.init_from trains; 0 = never."""
    num_sequences: int = Field(default=64, gt=0)
    """Sequences of the validation split that are scored each time, the same ones every time."""
    num_loops: tuple[int, ...] = ()
    """Loop counts to score. Default: model.num_loops."""
    tasks_every: int = Field(default=0, ge=0)
    """Steps between evaluations on tasks, each at all of num_loops and as tools/eval_depth.py does it; 0 = never."""
    tasks: tuple[str, ...] = ()
    """Tasks and groups of tools/eval_depth.py that need no network. Default: the tasks among data.sources."""
    num_examples: int | None = Field(default=None, gt=0)
    """First examples of each task that are scored. Default: all, of a generated task 1,000."""
    data_dir: PathText | None = None
    """Folder of evaluation data, for tasks that are read from files."""
    include_path: PathText | None = None
    """Folder of your own tasks: YAML of the evaluation harness, with its Python beside it."""

    def without_effect(self) -> dict[str, str]:
        return (
            {}
            if self.tasks_every
            else dict.fromkeys(("tasks", "num_examples", "data_dir", "include_path"), "tasks_every=0")
        )


class CommonCheckpointSection(Section):
    """What checkpoints have in both kinds of training."""

    keep_last: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept."""
    init_from: PathText | None = None
    """Directory of a run whose newest weights a new run starts from: pretrained, imported or fine-tuned. {a.b} in it
    stands for the value of key a.b. Default: random weights."""
    resume: Literal["auto", "never"] | NonNegativeInt = "auto"
    """auto: continue from the newest good checkpoint; never: refuse a run directory that has one; or a step, to go back
    to: the checkpoints after it are set aside."""


class CheckpointSection(CommonCheckpointSection):
    every: int = Field(default=500, ge=0)
    """Steps between checkpoints; 0 = only at the end and on a signal."""
    keep_every: int = Field(default=0, ge=0)
    """Every checkpoint at a multiple of this step count is kept; 0 = none."""
    asynchronous: bool = True
    """Write in the background: the step waits only for the copy out of the training state."""

    def without_effect(self) -> dict[str, str]:
        return {} if self.every else {"keep_every": "every=0"}

    @model_validator(mode="after")
    def _check_kept(self) -> "CheckpointSection":
        if self.every and self.keep_every:
            require_divides("checkpoint.keep_every", self.keep_every, "checkpoint.every", self.every)
        return self


class EntryConfig(Section):
    """What the configurations of all entry points have."""

    variants_of: ClassVar[str | None] = None
    """Key whose values may each have settings of their own under `variants:` of a file (`pretrain/config/read.py`)."""

    run: RunSection = RunSection()

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that hold the model once, the fewest that a run can have."""
        raise NotImplementedError


class RunConfig(EntryConfig):
    """The whole configuration of a pretraining run."""

    model: ModelSection = ModelSection()
    parallel: ParallelSection = ParallelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    validation: ValidationSection = ValidationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    alarms: AlarmsSection = AlarmsSection()
    ranks: RanksSection = RanksSection()
    profile: ProfileSection = ProfileSection()

    @property
    def ranks_per_replica(self) -> int:
        return self.parallel.tensor * self.parallel.pipeline

    @property
    def min_loops(self) -> int:
        """The smallest loop count that training can draw."""
        sampling = self.train.loop_sampling
        return (sampling.growth.start or self.model.num_loops) if sampling.distribution == "fixed" else sampling.minimum

    @property
    def max_loops(self) -> int:
        """The largest loop count that training can draw."""
        fixed = self.train.loop_sampling.distribution == "fixed"
        return self.model.num_loops if fixed else self.train.loop_sampling.maximum

    @property
    def validation_loops(self) -> tuple[int, ...]:
        return self.validation.num_loops or (self.model.num_loops,)

    @model_validator(mode="after")
    def _check_together(self) -> "RunConfig":
        model, parallel, train, validation = self.model, self.parallel, self.train, self.validation
        model.require_split(("parallel.tensor", parallel.tensor), ("parallel.pipeline", parallel.pipeline))
        if parallel.sequence:
            if parallel.tensor == 1:
                raise ValueError(
                    "parallel.sequence splits tokens over tensor-parallel ranks: it needs parallel.tensor > 1"
                )
            tokens = ("train.micro_batch · train.seq_len", train.micro_batch * train.seq_len)
            require_divides(*tokens, "parallel.tensor", parallel.tensor)
        self._check_reduction()
        require_divides("train.global_batch", train.global_batch, "train.micro_batch", train.micro_batch)
        num_micro_batches = train.global_batch // train.micro_batch
        if num_micro_batches < parallel.pipeline:
            raise ValueError(
                f"train.global_batch / train.micro_batch = {num_micro_batches} micro-batches are fewer than "
                f"parallel.pipeline={parallel.pipeline}: the ring needs at least one micro-batch per stage"
            )
        model.require_loops("train.loop_sampling.maximum", [self.max_loops])
        self._check_loops()
        self.alarms.require_measured(self)
        self.profile.require_within(train.steps)
        if train.teacher.run is not None and self.ranks_per_replica > 1:
            raise ValueError(
                "train.teacher: teacher and model are whole on each rank, so it needs parallel.tensor=1 and "
                "parallel.pipeline=1"
            )
        if train.teacher.run is not None and train.loop_loss.is_of_every_loop:
            raise ValueError("train.teacher is imitated by the last loop: it needs train.loop_loss.over=last")
        model.require_loops("validation.num_loops", validation.num_loops)
        folders = [source.path for source in self.data.sources if source.path is not None]
        if validation.every and folders and not self.data.validation_fraction:
            raise ValueError(
                f"validation.every={validation.every} scores documents that are held out, and "
                f"data.validation_fraction=0 holds out none of {folders[0]}: raise it or set validation.every=0"
            )
        has_tasks = validation.tasks or any(source.task is not None for source in self.data.sources)
        if validation.tasks_every and not has_tasks:
            raise ValueError(
                f"validation.tasks_every={validation.tasks_every}, but data.sources has no task: name validation.tasks"
            )
        if self.optimizer.warmup_steps >= train.steps > 1:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of train.steps={train.steps}"
            )
        return self

    def _check_reduction(self) -> None:
        """Raise a ValueError where gradients cannot be sent as they should be."""
        if self.parallel.reduce_precision == "fp32":
            return
        optimizer, precision = self.optimizer.name, self.train.precision
        if optimizer != "adamw" or precision == "fp64":
            raise ValueError(
                "parallel.reduce_precision=bf16 sends each rank the gradients that it alone updates; with "
                f"optimizer.name={optimizer} and train.precision={precision} each rank updates all: leave it at fp32, "
                "or take adamw and bf16"
            )

    def _check_loops(self) -> None:
        """Raise a ValueError where what a step does with its loops does not go together."""
        model, train, sampling = self.model, self.train, self.train.loop_sampling
        sampling.growth.require_below("train.loop_sampling.growth", *sampling.full(model.num_loops))
        if train.loop_loss.over == "expected" and model.loop.exit == "none":
            raise ValueError(
                "train.loop_loss.over=expected needs model.loop.exit=gate or linear: the gate says what to expect"
            )
        if train.loop_loss.is_of_every_loop and model.num_blocks > 1:
            raise ValueError(
                f"train.loop_loss.over={train.loop_loss.over}: a block-regularised model has no loops, only one output"
            )
        if train.loop_loss.is_of_every_loop and sampling.per == "sequence":
            raise ValueError(
                f"train.loop_loss.over={train.loop_loss.over} needs the same loops for all sequences: "
                "train.loop_sampling.per=step"
            )
        if train.backprop_loops is not None:
            train.backprop_growth.require_below("train.backprop_growth", "train.backprop_loops", train.backprop_loops)
            fewest = train.backprop_growth.start or train.backprop_loops
            require_gradient(model, fewest, self.max_loops)
            if sampling.per == "sequence":
                raise ValueError(
                    f"train.backprop_loops={train.backprop_loops} counts back from the last loop of a step: it needs "
                    "train.loop_sampling.per=step"
                )
            if train.loop_loss.is_of_every_loop and fewest < self.max_loops:
                raise ValueError(
                    f"train.loop_loss.over={train.loop_loss.over} needs gradients of every loop: leave "
                    f"train.backprop_loops={train.backprop_loops} out"
                )
