"""The training run: load or start, then for every step batch, loops, update, log, maybe validate, maybe save, stop if
asked.

Everything that varies from step to step (learning rate, loop count, data) is a function of the step and the seed, or in
the checkpoint, so a resumed run is the uninterrupted one, and neither depends on the ranks it runs on.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints
from pretrain.checkpoint.run import require_training_state
from pretrain.checkpoint.store import open_store
from pretrain.checkpoint.verify import newest_good
from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.data.stream.loader import Loader
from pretrain.data.tokenizers.tokenizer import Tokenizer, read_tokenizer
from pretrain.device.hardware import DTYPES, device_name, peak_flops, peak_memory_gib, precision_warning
from pretrain.device.host_memory import keep_freed_memory
from pretrain.eval.validation import Validation
from pretrain.model.count import count_parameters, forward_flops_per_token, train_flops_per_token
from pretrain.optim.learning_rate import learning_rate
from pretrain.optim.loop_count import num_loops_at
from pretrain.parallel.engine import Engine, StepResult
from pretrain.parallel.groups import Groups, gather_lists, make_groups, start_world
from pretrain.run.directory import describe_run, run_directory, tokenizer_copy, write_state
from pretrain.run.logger import RunMetrics
from pretrain.run.rows import EvaluationRow, MetricsRow, validation_row
from pretrain.run.signals import StopSignal, decode_reason, encode_reason

if TYPE_CHECKING:
    from pretrain.eval.in_loop import TaskEvaluation


@dataclass(kw_only=True)
class Progress:
    """What a run counts; saved with every checkpoint."""

    step: int = 0
    """Steps done."""
    skipped: int = 0
    """Steps whose update was skipped."""
    skipped_in_a_row: int = 0
    """Of them, the latest without an update between."""
    train_flops: float = 0.0
    """FLOPs of the model in all steps."""


def run(config: RunConfig, layout: Layout) -> int:
    """Train on the ranks of this world; every rank calls it. Returns the exit code.

    Raises:
        ValueError: naming what in configuration, data or run directory does not fit.
        OSError: storage failed.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tokenizer = Tokenizer.load(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"{config.data.tokenizer} has {tokenizer.vocab_size} tokens, "
            f"more than model.vocab_size={config.model.vocab_size}: raise the latter"
        )
    with StopSignal() as signals:
        device = start_world()
        if device.type == "cpu":
            keep_freed_memory()
        with Trainer(config, layout, make_groups(config.parallel, device), tokenizer, signals) as trainer:
            code = trainer.run()
        # Not after an error: the other ranks notice that this one is gone, and should do so after it has said why.
        dist.destroy_process_group()
        return code


class Trainer:
    """One rank of a run. A context manager that ends loader, logs and unfinished saves."""

    def __init__(
        self, config: RunConfig, layout: Layout, groups: Groups, tokenizer: Tokenizer, signals: StopSignal
    ) -> None:
        self.config, self.layout, self.groups, self.signals = config, layout, groups, signals
        self.tokenizer_sha256 = tokenizer.sha256
        self.rank = dist.get_rank()
        self.started = time.monotonic()
        self.progress = Progress()
        self.outcome = ""  # the last line of the run, said when the progress display is gone
        self.directory = run_directory(config.run)
        settings = config.checkpoint
        self.store = open_store(
            self.directory / CHECKPOINTS,
            keep_last=settings.keep_last,
            keep_every=settings.keep_every,
            asynchronous=settings.asynchronous,
        )
        self.loader = Loader(
            config.data, seed=config.run.seed, seq_len=config.train.seq_len, global_batch=config.train.global_batch,
            rank=groups.data.rank(), num_ranks=groups.data.size(),
        )  # fmt: skip
        self.validation = Validation(config, layout, groups.data.rank()) if config.validation.every else None
        self.engine = Engine(config, groups, tokenizer.separators)
        self.tasks = self._task_evaluation(tokenizer) if config.validation.tasks_every else None
        problems = self._resume()
        if self.rank == 0:  # only now: a configuration that does not fit the run leaves no trace in it
            describe_run(
                self.directory, config,
                ranks=f"{layout.world_size} = {groups.describe()}",
                device=device_name(groups.device),
                tokenizer=read_tokenizer(config.data.tokenizer),
                tokenizer_path=tokenizer_copy(self.directory, config),
            )  # fmt: skip
            write_state(self.directory, "running")
        self.num_parameters = count_parameters(config.model, config.train.seq_len).total
        dtype = DTYPES[config.train.precision]
        self.peak_flops = peak_flops(groups.device, dtype) * layout.world_size
        self.metrics = None
        if self.rank == 0:
            self.metrics = RunMetrics(
                config, self.directory, num_steps=config.train.steps, resumed_step=self.progress.step
            )
        for problem in (*problems, precision_warning(groups.device, dtype)):
            if problem:
                self._say(f"warning: {problem}")
        for task in self.tasks.skipped if self.tasks else ():
            self._say(f"warning: skipped {task.name}: {task.reason}")

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()
        if self.metrics is not None:
            self.metrics.close()
            if self.outcome:
                self._say(self.outcome)

    def run(self) -> int:
        """Train until the last step or until a rank is asked to stop; returns the exit code."""
        config, progress, stop = self.config, self.progress, 0
        self._say(
            f"step {progress.step} of {config.train.steps}: "
            f"{'resumed' if progress.step else 'started'} {self.directory}"
        )
        if self.validation and not progress.step and config.checkpoint.init_from:
            stop = self._validate()  # what the weights were worth before this run
        if progress.step or config.checkpoint.init_from:
            stop = stop or self._score_tasks()  # and what a stop left undone
        while progress.step < config.train.steps and not stop:
            started = time.perf_counter()
            num_loops = num_loops_at(config.model, config.train.loop_sampling, config.run.seed, progress.step)
            lr = learning_rate(config.optimizer, progress.step, config.train.steps)
            rows = torch.from_numpy(self.loader.next_batch())
            result = self.engine.train_step(rows, num_loops, lr, self._wish)
            self._count(result, num_loops)
            self._log(result, num_loops, lr, time.perf_counter() - started)
            if progress.skipped_in_a_row >= config.train.max_bad_steps:
                return self._give_up()
            stop = result.stop_code
            is_last = progress.step == config.train.steps
            if self.validation and not stop and (is_last or progress.step % config.validation.every == 0):
                stop = self._validate()
            stop = stop or self._score_tasks()
            if is_last or stop or (config.checkpoint.every and progress.step % config.checkpoint.every == 0):
                self._save()
            self._report_saves()
        return self._finish(decode_reason(stop))

    def _wish(self) -> int:
        """This rank's wish to stop."""
        minutes = self.config.train.exit_after
        if self.signals.requested is None and minutes is not None and time.monotonic() - self.started > 60 * minutes:
            return encode_reason("train.exit_after")
        return encode_reason(self.signals.requested)

    def _count(self, result: StepResult, num_loops: int) -> None:
        train, progress = self.config.train, self.progress
        progress.step += 1
        progress.skipped += result.skipped
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result.skipped else 0
        tokens = train.global_batch * train.seq_len
        progress.train_flops += tokens * train_flops_per_token(self.config.model, train.seq_len, num_loops)

    def _log(self, result: StepResult, num_loops: int, lr: float, step_time_s: float) -> None:
        if self.metrics is None:
            return
        config, train = self.config, self.config.train
        tokens = train.global_batch * train.seq_len
        self.metrics.log_step(
            MetricsRow.of_step(
                step=self.progress.step,
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                num_loops=num_loops,
                tokens_per_step=tokens,
                flops_per_step=tokens * train_flops_per_token(config.model, train.seq_len, num_loops),
                peak_flops=self.peak_flops,
                step_time_s=step_time_s,
                memory_gib=peak_memory_gib(self.groups.device),
                skipped=self.progress.skipped,
            )
        )

    def _validate(self) -> int:
        """Score the validation sequences at every loop count; returns the agreed stop code."""
        assert self.validation is not None
        config, loops = self.config, tuple(dict.fromkeys(self.config.validation_loops))
        losses, stop = self.validation.losses(self.engine, loops, self._wish)
        if stop:
            return stop
        rows = [
            validation_row(
                config,
                step=self.progress.step,
                train_flops=self.progress.train_flops,
                num_params=self.num_parameters,
                num_loops=num_loops,
                nll=nll,
                stderr=None,
                num_examples=self.validation.num_sequences,
                eval_flops_per_token=forward_flops_per_token(config.model, config.train.seq_len, num_loops),
            )
            for num_loops, nll in zip(loops, losses, strict=True)
        ]
        self._report_rows(rows)
        return 0

    def _task_evaluation(self, tokenizer: Tokenizer) -> "TaskEvaluation":
        try:
            from pretrain.eval.in_loop import TaskEvaluation
        except ModuleNotFoundError as error:
            raise ValueError(
                f"validation.tasks_every={self.config.validation.tasks_every} needs the evaluation harness, "
                f"but there is no module {error.name}: bash tools/setup.sh eval"
            ) from None
        file = self.directory / "eval" / "depth.jsonl"
        return TaskEvaluation(self.config, self.engine.model, self.groups, tokenizer, file, self._wish)

    def _score_tasks(self) -> int:
        """Score the tasks if this step is one for them; returns the agreed stop code."""
        step = self.progress.step
        if self.tasks is None or (step % self.config.validation.tasks_every and step != self.config.train.steps):
            return 0
        return self.tasks.run(step, self.progress.train_flops, self._report_rows)

    def _report_rows(self, rows: list[EvaluationRow]) -> None:
        if self.metrics is not None:
            self.metrics.log_evaluation(rows)

    def _save(self) -> None:
        """Start saving everything that a resumed run needs."""
        cursors = torch.from_numpy(self.loader.state()).to(self.groups.device)
        dist.all_reduce(cursors, group=self.groups.data)
        pieces = self.engine.pieces()
        if self.rank == 0:
            pieces.append(Piece.whole("data/cursors", cursors))
            pieces.append(Piece.whole("rng/cpu", torch.get_rng_state()))
        meta: dict[str, Any] = {
            **vars(self.progress),
            "num_updates": self.engine.num_updates,
            "next_sample": self.loader.next_sample,
            "sources": self.loader.fingerprints,
            "tokenizer_sha256": self.tokenizer_sha256,
            "config": self.config.model_dump(mode="json"),
        }
        self.store.save(self.progress.step, pieces, meta)

    def _resume(self) -> list[str]:
        """Continue from the newest good checkpoint, if there is one; returns a line for each bad one."""
        folder = self.directory / CHECKPOINTS
        if self.config.checkpoint.resume == "never":
            found = list_checkpoints(folder)
            if found:
                raise ValueError(
                    f"{folder} holds {found[0].name}, but checkpoint.resume=never: "
                    "choose another run.name or resume=auto"
                )
            return []
        reader, problems = newest_good(folder, rank=self.rank, world_size=dist.get_world_size(), gather=gather_lists)
        if reader is None:
            if problems:
                advice = "move the folder away to start from step 0, or choose another run.name"
                raise ValueError("\n".join([*problems, f"{folder}: no good checkpoint is left; {advice}"]))
            return self._start_from(Path(self.config.checkpoint.init_from)) if self.config.checkpoint.init_from else []
        require_training_state(reader)
        meta = reader.meta
        self._require_same(meta["config"], reader.path.name)
        if meta["tokenizer_sha256"] != self.tokenizer_sha256:
            raise ValueError(
                f"{self.config.data.tokenizer} is not the tokenizer that {self.directory} was trained with"
            )
        self.engine.load(reader, meta["num_updates"])
        self.loader.require_sources(meta["sources"])
        self.loader.load_state(reader.read_whole("data/cursors").numpy(), meta["next_sample"])
        torch.set_rng_state(reader.read_whole("rng/cpu"))
        self.progress = Progress(**{key: meta[key] for key in vars(self.progress)})
        return problems

    def _start_from(self, run_dir: Path) -> list[str]:
        """Take the newest good weights of another run; returns a line for each bad checkpoint."""
        reader, problems = newest_good(
            run_dir / CHECKPOINTS, rank=self.rank, world_size=dist.get_world_size(), gather=gather_lists
        )
        if reader is None:
            raise ValueError("\n".join([*problems, f"checkpoint.init_from={run_dir}: no good checkpoint there"]))
        if reader.meta["tokenizer_sha256"] != self.tokenizer_sha256:
            raise ValueError(
                f"{self.config.data.tokenizer} is not the tokenizer of checkpoint.init_from={run_dir}: "
                "use the one in there"
            )
        self.engine.load_weights(reader)
        return problems

    def _require_same(self, saved: dict[str, Any], name: str) -> None:
        """What defines the model and the order of the data may not change on resume."""
        now = self.config.model_dump(mode="json")
        fixed = [("model", key) for key in now["model"]] + [
            ("run", "seed"),
            ("train", "seq_len"),
            ("data", "num_streams"),
        ]
        for section, key in fixed:
            if saved[section].get(key) != now[section][key]:
                raise ValueError(
                    f"{section}.{key}={now[section][key]!r}, but {self.directory}/checkpoints/{name} was made with "
                    f"{saved[section].get(key)!r}: choose another run.name or the old value"
                )

    def _give_up(self) -> int:
        bad = self.progress.skipped_in_a_row
        advice = "lower optimizer.lr, or resume from an earlier checkpoint"
        self.store.wait()
        self._end("failed", f"error: loss or gradient was not finite in {bad} steps in a row; {advice}")
        return 1

    def _finish(self, reason: str | None) -> int:
        self.store.wait()
        self._report_saves()
        what = f"stopped by {reason}, the same command continues it" if reason else "complete"
        self._end(
            f"stopped by {reason}" if reason else "complete",
            f"step {self.progress.step} of {self.config.train.steps}: {what}",
        )
        return 0

    def _end(self, state: str, outcome: str) -> None:
        self.outcome = outcome
        if self.rank == 0:
            write_state(self.directory, state)

    def _report_saves(self) -> None:
        for result in self.store.poll():
            if self.rank == 0:
                self._say(result.message if result.is_durable else f"warning: {result.message}")

    def _say(self, text: str) -> None:
        if self.metrics is not None:
            self.metrics.message(text)
