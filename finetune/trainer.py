"""The fine-tuning run: epoch by epoch through the stages, validated by answering, the best of the last stage kept.

    runs/<name>/  metrics.jsonl (a row a step), eval/coconut.jsonl (a row an evaluation), checkpoints/ (to go on from),
                  best/ (a run directory of weights alone: the best checkpoint of the last stage)

What an epoch trains on is a function of (seed, epoch, step), and everything else is in the checkpoint, so a run that
was killed anywhere goes on from its newest checkpoint as if nothing had happened: bitwise on the same ranks.
"""

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from finetune.answers.answering import Answering, log_row
from finetune.answers.results import read_rows
from finetune.config import FinetuneConfig, ledger
from finetune.engine.engine import FinetuneEngine, StepResult
from finetune.examples.examples import ExampleSet, load_example_set
from finetune.examples.sampler import Sampler
from finetune.examples.sequence import RowMaker
from finetune.latent.batch import StepBatch
from finetune.method.curriculum import final_stage, stage_at
from finetune.run.finetuned_model import BEST, load_stop_classifier
from finetune.run.rows import FinetuneRow, step_flops
from finetune.run.saving import Saving
from finetune.run.start import Start, start_of
from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.layout import Layout
from pretrain.config.run import ParallelSection
from pretrain.device.hardware import DTYPES, device_name, peak_flops, peak_memory_gib, precision_warning
from pretrain.device.host_memory import keep_freed_memory
from pretrain.optim.learning_rate import learning_rate
from pretrain.parallel.groups import Groups, make_groups, start_world
from pretrain.parallel.stage import load_stage
from pretrain.run.directory import describe_run, run_directory, tokenizer_copy, write_state
from pretrain.run.logger import RunMetrics
from pretrain.run.signals import StopSignal, decode_reason, encode_reason
from pretrain.tasks.task import Split

RESULTS = "coconut.jsonl"
"""Evaluation rows, in `eval/` of the run directory."""


def run(config: FinetuneConfig, layout: Layout) -> int:
    """Fine-tune on the ranks of this world; every rank calls it. Returns the exit code.

    Raises:
        ValueError: naming what in configuration, data or run directory does not fit.
        OSError: storage failed.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    start = start_of(config)
    with StopSignal() as signals:
        device = start_world()
        if device.type == "cpu":
            keep_freed_memory()
        groups = make_groups(ParallelSection(tensor=config.engine.tensor), device)
        with FinetuneTrainer(config, layout, groups, start, signals) as trainer:
            code = trainer.run()
        # Not after an error: the other ranks notice that this one is gone, and should do so after it has said why.
        dist.destroy_process_group()
        return code


class FinetuneTrainer:
    """One rank of a run. A context manager that ends logs and unfinished saves."""

    def __init__(
        self, config: FinetuneConfig, layout: Layout, groups: Groups, start: Start, signals: StopSignal
    ) -> None:
        self.config, self.layout, self.groups, self.start, self.signals = config, layout, groups, start, signals
        self.rank, self.started, self.outcome = dist.get_rank(), time.monotonic(), ""
        self.directory = run_directory(config.run)
        train, self.validation = self._examples("train"), self._examples("validation")
        maker = RowMaker(config.chosen_method, config.curriculum, config.method.markers_in_first_stage, start.tokenizer)
        self.sampler = Sampler(train.encoded, maker, config, layout, groups.data.rank())
        self.sampler.require_length(start.run.train.seq_len)
        self.num_steps = config.train.epochs * self.sampler.steps_per_epoch
        self.saving = Saving(config, start, self.directory, train.encoded)
        self.engine = FinetuneEngine(config, start.run, layout, groups)
        self.answering = Answering(config, start, groups, lambda: self.engine.agree_to_stop(self._wish()))
        self.progress, problems = self.saving.resume(self.engine)
        dtype = DTYPES[start.run.train.precision]
        self.peak_flops = peak_flops(groups.device, dtype) * layout.world_size
        self.metrics = None
        if self.rank == 0:  # only now: a configuration that does not fit the run leaves no trace in it
            self._describe(self.directory)
            write_state(self.directory, "running")
            resumed = self.progress.step
            self.metrics = RunMetrics(
                config, self.directory, num_steps=self.num_steps, resumed_step=resumed, results=RESULTS
            )
        for problem in (*start.problems, *problems, precision_warning(groups.device, dtype)):
            if problem:
                self._say(f"warning: {problem}")

    def __enter__(self) -> "FinetuneTrainer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.metrics is not None:
            self.metrics.close()
            if self.outcome:
                self._say(self.outcome)

    def run(self) -> int:
        """Train until the last epoch or until a rank is asked to stop; returns the exit code."""
        config, progress, stop = self.config, self.progress, 0
        how = "resumed" if progress.step else "started"
        self._say(f"step {progress.step} of {self.num_steps}: {how} {self.directory}, {ledger(config, self.layout)}")
        while progress.epoch < config.train.epochs and not stop:
            if progress.step_in_epoch == 0 and self._begins_anew():
                self.engine.reset_optimizer()
            while progress.step_in_epoch < self.sampler.steps_per_epoch and not stop:
                stop = self._train_step()
                is_last = progress.step_in_epoch == self.sampler.steps_per_epoch
                if (
                    not is_last
                    and not stop
                    and config.checkpoint.every
                    and progress.step % config.checkpoint.every == 0
                ):
                    self.saving.save(self.engine, progress)
                self._report_saves()
            stop = stop or self._validate()
            if not stop:
                progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
            self.saving.save(self.engine, progress)
        return self._finish(decode_reason(stop or self._test()))

    def _begins_anew(self) -> bool:
        """Whether the moments start from zero at this epoch."""
        reset, epoch = self.config.optimizer.reset, self.progress.epoch
        return epoch > 0 and (reset == "epoch" or (reset == "stage" and self._stage(epoch) != self._stage(epoch - 1)))

    def _stage(self, epoch: int) -> int:
        return stage_at(self.config.curriculum, self.config.chosen_method, epoch)

    def _train_step(self) -> int:
        """One optimizer step; returns the agreed stop code."""
        progress, started = self.progress, time.perf_counter()
        batch = self.sampler.step(progress.epoch, progress.step_in_epoch)
        lr = learning_rate(self.config.optimizer.schedule, progress.step, self.num_steps)
        try:
            result = self.engine.train_step(batch, lr, self._wish)
        except FloatingPointError as error:
            raise ValueError(
                f"step {progress.step + 1}: {error}: lower optimizer.lr or set optimizer.clip_grad_norm; "
                "the same command goes on from the newest checkpoint"
            ) from None
        progress.step_in_epoch += 1
        progress.step += 1
        progress.skipped += result.skipped
        self._log(batch, result, lr, time.perf_counter() - started)
        return result.stop_code

    def _wish(self) -> int:
        """This rank's wish to stop."""
        minutes = self.config.train.exit_after
        if self.signals.requested is None and minutes is not None and time.monotonic() - self.started > 60 * minutes:
            return encode_reason("train.exit_after")
        return encode_reason(self.signals.requested)

    def _log(self, batch: StepBatch, result: StepResult, lr: float, step_time_s: float) -> None:
        if self.metrics is None:
            return
        flops_per_s = step_flops(self.start.run.model, batch) / step_time_s
        self.metrics.log_step(
            FinetuneRow(
                step=self.progress.step,
                epoch=self.progress.epoch,
                stage=self._stage(self.progress.epoch),
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                thoughts_per_example=batch.num_thoughts / batch.num_examples,
                examples_per_s=batch.num_examples / step_time_s,
                tokens_per_s=batch.num_tokens / step_time_s,
                flops_per_s=flops_per_s,
                mfu_pct=100 * flops_per_s / self.peak_flops,
                step_time_s=step_time_s,
                memory_gib=peak_memory_gib(self.groups.device),
                skipped=self.progress.skipped,
            )
        )

    def _validate(self) -> int:
        """Answer the validation questions as the stage of this epoch does, and keep the weights if they are the best of
        the last stage.

        Returns the agreed stop code.
        """
        config, progress = self.config, self.progress
        is_last = progress.epoch + 1 == config.train.epochs
        if (progress.epoch + 1) % config.validation.every and not is_last:
            return 0
        stage = self._stage(progress.epoch)
        with self.engine.whole_model() as (model, stop_classifier):
            tally, stop = self.answering.score(model, stop_classifier, self.validation, stage)
        if tally is None:
            return stop
        row = self.answering.row(tally, "validation", stage, step=progress.step, epoch=progress.epoch)
        if self.metrics is not None:
            log_row(self.metrics, row)
        if stage == final_stage(config.curriculum, config.chosen_method) and row.accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_step = row.accuracy, progress.step
            self.saving.save_best(self.engine, progress)
            if self.rank == 0:
                self._describe(self.directory / BEST)
        return 0

    def _test(self) -> int:
        """Answer the test questions with the best weights, once; returns the agreed stop code."""
        config, progress = self.config, self.progress
        if not config.data.test.is_given or progress.epoch < config.train.epochs or progress.best_accuracy < 0:
            return 0
        rows = read_rows(self.directory / "eval" / RESULTS)
        found = any((row.split, row.step) == ("test", progress.best_step) for row in rows)
        is_there = torch.tensor(int(found), device=self.groups.device)
        dist.broadcast(is_there, src=0)  # rank 0 writes the rows, and others may not see them yet
        if is_there:
            return 0
        reader, _ = open_checkpoint(self.directory / BEST, progress.best_step)
        model = load_stage(self.start.run, self.groups, reader)
        stage = final_stage(config.curriculum, config.chosen_method)
        tally, stop = self.answering.score(model, load_stop_classifier(reader, model), self._examples("test"), stage)
        if tally is not None and self.metrics is not None:
            log_row(
                self.metrics, self.answering.row(tally, "test", stage, step=progress.best_step, epoch=progress.epoch)
            )
        return stop

    def _examples(self, split: Split) -> ExampleSet:
        return load_example_set(getattr(self.config.data, split), split, self.config.run.seed, self.start.tokenizer)

    def _describe(self, directory: Path) -> None:
        describe_run(
            directory, self.config,
            ranks=f"{self.layout.world_size} = {self.groups.describe()}, ZeRO stage {self.config.engine.zero_stage}",
            device=device_name(self.groups.device),
            tokenizer=self.start.tokenizer_bytes,
            tokenizer_path=tokenizer_copy(directory, self.start.run),
        )  # fmt: skip

    def _finish(self, reason: str | None) -> int:
        self.saving.store.wait()
        self._report_saves()
        what = f"stopped by {reason}, the same command continues it" if reason else "complete"
        self.outcome = f"step {self.progress.step} of {self.num_steps}: {what}"
        if self.rank == 0:
            write_state(self.directory, f"stopped by {reason}" if reason else "complete")
        return 0

    def _report_saves(self) -> None:
        for result in self.saving.store.poll():
            if self.rank == 0 and not result.is_durable:
                self._say(f"warning: {result.message}")

    def _say(self, text: str) -> None:
        if self.metrics is not None:
            self.metrics.message(text)
