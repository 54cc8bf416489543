"""Rows that a run writes, and the files of them.

- `MetricsRow`: one training step, a line of `<run>/metrics.jsonl`.
- `EvaluationRow`: one number about one model at one loop count, a line of `<run>/eval/depth.jsonl`; validation losses
  are such rows.
- `RowFile`: appends rows, each in the file once `append` returns. No step is in a file twice: opening it for a run that
  continues after step s cuts the later rows, which the run is about to write again, and the lines that a kill or a full
  disk left unfinished.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """One training step; a number that is not finite is null in the file."""

    step: int
    """Steps done, this one included: the first row of a run has 1, as the checkpoint after it would."""
    tokens_seen: int
    """Tokens of all steps so far, over all ranks."""
    loss: float
    """Mean loss per token, in nats."""
    grad_norm: float
    """Global gradient norm before clipping."""
    lr: float
    """Learning rate of this step."""
    num_loops: int
    """Loops run in this step."""
    tokens_per_s: float
    """Tokens per second over all ranks."""
    flops_per_s: float
    """Model FLOP/s over all ranks, for the loops that were run."""
    mfu_pct: float
    """Share of the peak of all ranks' devices, in percent."""
    step_time_s: float
    """Wall time of this step."""
    memory_gib: float
    """Largest memory use of rank 0 so far."""
    skipped: int
    """Steps skipped so far because loss or gradient was not finite."""

    @classmethod
    def of_step(
        cls,
        *,
        step: int,
        tokens_seen: int,
        loss: float,
        grad_norm: float,
        lr: float,
        num_loops: int,
        tokens_per_step: int,
        flops_per_step: float,
        peak_flops: float,
        step_time_s: float,
        memory_gib: float,
        skipped: int,
    ) -> "MetricsRow":
        """The row of a step from what was measured; rates and MFU are computed here and nowhere else.

        Args:
            tokens_per_step: tokens of the global batch.
            flops_per_step: model FLOPs of the global batch, forward and backward, for `num_loops` loops.
            peak_flops: FLOP/s of all ranks' devices together.
            The others: as the fields of the same name.
        """
        flops_per_s = flops_per_step / step_time_s
        return cls(
            step=step,
            tokens_seen=tokens_seen,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            num_loops=num_loops,
            tokens_per_s=tokens_per_step / step_time_s,
            flops_per_s=flops_per_s,
            mfu_pct=100 * flops_per_s / peak_flops,
            step_time_s=step_time_s,
            memory_gib=memory_gib,
            skipped=skipped,
        )

    def describe(self) -> str:
        """The few numbers worth watching, on one line."""
        rate = tqdm.format_sizeof(self.tokens_per_s)
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        speed = f"{rate} tok/s, MFU {self.mfu_pct:.1f}%"
        return f"loss {self.loss:.4f}, loops {self.num_loops}, {speed}, lr {self.lr:.2e}{skipped}"


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One number about one model at one loop count; all that tools/scaling_plot.py needs."""

    run: str
    """Name of the run."""
    step: int
    """Steps done when the model was scored."""
    tokens_seen: int | None
    """Tokens that the run trained on until then; null where nobody counted them, as for imported weights."""
    train_flops: float | None
    """FLOPs of the run's training until then; null where nobody counted them."""
    num_params: int
    """Parameters, each shared one counted once."""
    task: str
    """What was scored; "validation" for the held-out text of the run."""
    task_group: str
    """Tasks that are averaged in a plot."""
    metric: str
    """Name of the number; "nll" is nats per token."""
    value: float
    """The number."""
    stderr: float | None
    """Its standard error over examples, where known."""
    num_examples: int
    """Examples scored."""
    num_loops: int
    """Loops the model was run with."""
    effective_depth: int
    """Layers a token passed."""
    eval_flops_per_token: float
    """Forward FLOPs per token at that depth."""
    family: Literal["looped", "baseline", "regularised"]
    """Kind of model; see `SavedModel.family`."""
    num_loop_params: int | None = None
    """Those of the parameters that are in the loop block, applied `num_loops` times; the joint law of the scaling plot
    needs it."""


class RowFile:
    """A file of JSON rows, one a line, each with a `step`; append-only apart from the cut when it is opened."""

    def __init__(self, path: Path, last_step: int) -> None:
        """
        Args:
            path: of the file; it and its folder are made if absent.
            last_step: rows of later steps are removed, as are lines that hold no row; `problems` names the latter.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.problems = _cut_rows(path, last_step) if path.exists() else []
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def append(self, row: dict[str, Any]) -> None:
        """Write a row out.

        Raises:
            OSError: it cannot be written, because the disk is full say; what is left of it goes first at the next call.
        """
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        self._unwritten += json.dumps(finite, allow_nan=False).encode() + b"\n"
        self._write_out()

    def close(self) -> None:
        """Close the file, after a last try to write what `append` could not.

        Raises:
            OSError: it failed again.
        """
        with self._file:
            self._write_out()

    def _write_out(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def _cut_rows(path: Path, last_step: int) -> list[str]:
    """Remove rows after `last_step` and lines without a row, atomically; say which lines had none."""
    broken, changed = [], False
    scratch = path.with_name(path.name + ".tmp")
    with path.open("rb") as old, scratch.open("wb") as new:
        for number, line in enumerate(old, start=1):
            step = _step_of(line)
            if step is None:
                broken.append(number)
            elif step <= last_step:
                new.write(line)
                continue
            changed = True
        new.flush()
        os.fsync(new.fileno())
    if changed:
        scratch.replace(path)
    else:
        scratch.unlink()
    return [f"{path}:{number}: an unfinished row, removed" for number in broken]


def _step_of(line: bytes) -> int | None:
    """The step of a complete row, None for anything else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) and line.endswith(b"\n") else None
