"""Rows of training steps, lines of `<run>/metrics.jsonl`: `MetricsRow` of pretraining; fine-tuning has its own numbers
beside those of `StepRow`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a step took; rates and MFU are computed here and nowhere else."""

    tokens: int
    """Tokens of the global batch."""
    flops: float
    """Model FLOPs of the global batch, forward and backward, for the loops that were run."""
    seconds: float
    """Wall time."""
    peak_flops: float | None
    """FLOP/s of all ranks' devices together; None where it is not known."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds

    @property
    def mfu_pct(self) -> float | None:
        return None if self.peak_flops is None else 100 * self.flops_per_s / self.peak_flops


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """What tools read of a row, of pretraining or of fine-tuning, however old."""

    run_id: str | None = None
    step: int
    step_time_s: float
    tokens_seen: int | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepRow(ABC):
    """One training step; a number that is not finite is null in the file. It says whose step it is, so that rows of
    several files in one are still told apart; old rows do not."""

    run_id: str | None = None
    """As of `RunIdentity`, like the next."""
    config: str | None = None
    step: int
    """Steps done, this one included: the first row of a run has 1, as the checkpoint after it would."""
    loss: float
    """Mean loss per supervised token, in nats."""
    grad_norm: float
    """Global gradient norm before clipping."""
    lr: float
    """Learning rate of this step."""
    tokens_per_s: float
    """Tokens per second over all ranks; fine-tuning does not count padding."""
    flops_per_s: float
    """Model FLOP/s over all ranks, for the loops that were run."""
    mfu_pct: float | None
    """Share of the peak of all ranks' devices, in percent; None where that is not known."""
    step_time_s: float
    """Wall time of this step."""
    eta_s: float | None = None
    """Seconds that the steps after it will take, by the loops they are expected to run, with what lies between steps;
    None after the first step of a start."""
    memory_gib: float
    """Largest memory use of rank 0 so far."""
    work_s: float | None = None
    """How long a rank itself works in a step, its waits for others left out: data, forward and backward; in fine-tuning
    data and forward. Median over the replicas, of two the shorter; of the step before on GPUs; None of one replica."""
    work_worst_s: float | None = None
    """The same of the slowest replica."""
    slowest: str | None = None
    """Its ranks and their machines."""
    skipped: int
    """Steps skipped so far because loss or gradient was not finite, or because fp16 overflowed."""

    @abstractmethod
    def describe(self) -> str:
        """The few numbers worth watching, on one line."""

    def describe_speed(self) -> str:
        speed = f"{self.flops_per_s / 1e12:.3g} TFLOP/s" if self.mfu_pct is None else f"MFU {self.mfu_pct:.1f}%"
        return f"{tqdm.format_sizeof(self.tokens_per_s)} tok/s, {speed}"

    def describe_skipped(self) -> str:
        """To end a line with; empty if no step was skipped."""
        return f", {self.skipped} skipped" if self.skipped else ""


@dataclass(frozen=True, kw_only=True)
class MetricsRow(StepRow):
    """One step of pretraining."""

    tokens_seen: int
    """Tokens of all steps so far, over all ranks."""
    num_loops: float
    """Loops run in this step; in the mean of its sequences, if each has a count of its own."""
    regularisation: float = 0.0
    """What the loop regulariser added to the loss, in nats; 0 without one."""
    objective: float | None = None
    """What was minimised where `train.loop_loss` is of more than the last loop, per supervised token in nats; `loss` is
    the last loop's whatever it is."""

    def describe(self) -> str:
        loss = f"loss {self.loss:.4f}"
        if self.regularisation:
            loss += f" (regulariser {self.regularisation:+.4f})"
        if self.objective is not None:
            loss += f" (objective {self.objective:.4f})"
        return f"{loss}, loops {self.num_loops:g}, {self.describe_speed()}, lr {self.lr:.2e}{self.describe_skipped()}"
