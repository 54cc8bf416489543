"""The fine-tuning run: epoch by epoch through the stages, validated by answering, the best of the last stage kept.

    runs/<name>/  metrics.jsonl (a row a step), eval/coconut.jsonl (a row an evaluation), checkpoints/ (to go on from),
                  best/ (a run directory of weights alone: the best checkpoint of the last stage)

What an epoch trains on is a function of (seed, epoch, step), and everything else is in the checkpoint, so a run that
was killed anywhere continues from its newest checkpoint as if nothing had happened: bitwise on the same ranks. What
surrounds the loop: `pretrain/run/session.py`.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any, assert_never

import torch
import torch.distributed as dist

from finetune.answers.answering import StageAnswerer, log_row
from finetune.answers.results import CoconutRow, inputs_of
from finetune.answers.scoring import Tally
from finetune.config import FinetuneConfig, ledger, require_last_stage
from finetune.engine.engine import FinetuneEngine, FinetuneStepResult
from finetune.engine.objective import Objective
from finetune.examples.examples import ExampleSet, data_fingerprint, load_example_set, untracked
from finetune.examples.sampler import Sampler
from finetune.examples.sequence import RowMaker
from finetune.latent.batch import StepBatch
from finetune.method.curriculum import final_stage, stage_at
from finetune.run.best import BEST
from finetune.run.counters import FinetuneCounters
from finetune.run.finetuned_model import load_stop_classifier
from finetune.run.origin import Origin, resolve_origin
from finetune.run.plan import model_need
from finetune.run.rows import FinetuneRow, step_flops
from finetune.run.session import RESULTS, examples_sha256, open_session, require_same_examples
from pretrain.checkpoint.commit import retire
from pretrain.checkpoint.counters import Counters
from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, parse_step
from pretrain.checkpoint.run import open_checkpoint
from pretrain.checkpoint.store import open_store
from pretrain.config.layout import Layout
from pretrain.device.hardware import device_memory, peak_memory_gib
from pretrain.optim.learning_rate import learning_rate
from pretrain.parallel.stage import load_stage
from pretrain.plan.room import require_room
from pretrain.report.page import write_last_report
from pretrain.rows.jsonl import JsonLines
from pretrain.run.progress import tracked
from pretrain.run.resume import MAY_DIFFER, Resumable
from pretrain.run.session import RunSession
from pretrain.run.stragglers import work_fields
from pretrain.run.world import join_world
from pretrain.tasks.task import Split

RESUMABLE = Resumable(
    training="fine-tuning", mark="finetune", config="finetune",
    may_differ={
        **MAY_DIFFER,
        "train.epochs": "the length of the run",
        "engine": "how the work is spread over the ranks",
        "data.test": "what the best weights are scored on at the end",
    },
)  # fmt: skip


def run(config: FinetuneConfig, layout: Layout) -> int:
    """Fine-tune on the ranks of this world; every rank calls it. Returns the exit code.

    Raises:
        ValueError: naming what in configuration, data or run directory does not fit.
        OSError: storage failed.
        RunFailed: either of these, after the run had begun.
    """
    origin = resolve_origin(config)
    with join_world(config) as (groups, signals):
        require_room([model_need(origin.saved, layout.world_size)], *device_memory(groups.device))
        with open_session(config, layout, groups, origin, signals) as session:
            code = FinetuneTrainer(config, origin, session).run()
            write_last_report(session)
            return code


class FinetuneTrainer:
    """One rank of a run."""

    def __init__(self, config: FinetuneConfig, origin: Origin, session: RunSession) -> None:
        self.config, self.session, self.groups = config, session, session.groups
        layout, groups, tokenizer = session.layout, session.groups, session.tokenizer
        self.train, self.validation = self._examples("train"), self._examples("validation")
        self.test = self._examples("test") if config.data.test.is_given else None
        session.identity = replace(session.identity, data=data_fingerprint(config.data.train, self.train))
        maker = RowMaker(config.chosen_method, config.curriculum, config.method.markers_in_first_stage, tokenizer)
        self.sampler = Sampler(self.train.encoded, maker, config, layout, groups.data.rank())
        self.sampler.require_length(origin.saved.seq_len)
        make_objective = partial(Objective, method=config.method)
        self.engine = FinetuneEngine(config, origin.saved, layout, groups, make_objective)
        self.answering = StageAnswerer(config, origin.saved, tokenizer, groups, session.vote)
        session.warnings += self.answering.check_lengths("validation", self.validation)
        if self.test is not None:
            session.warnings += self.answering.check_lengths("test", self.test)
        self.counters = FinetuneCounters()
        self._scored_epochs = 0
        if config.engine.zero_stage == 3 and layout.data_parallel > 1:
            session.notes.append(
                "engine.zero_stage=3: ranks hold nothing alike and wait for each other in every pass, so "
                "ranks.check_weights_every and ranks.slow_factor have no effect"
            )
        self._resume(origin)
        steps = self.sampler.steps_per_epoch
        session.begin(
            self.counters, config.train.epochs * steps, more=f", {ledger(config, layout)}",
            scored_every=self._scored_epochs * steps,
        )  # fmt: skip
        if session.rank == 0:  # best weights of steps that are trained again
            for path in list_checkpoints(session.directory / BEST / CHECKPOINTS):
                if (parse_step(path.name) or 0) > self.counters.step:
                    retire(path)

    def run(self) -> int:
        """Train until the last epoch or until the ranks vote to stop; returns the exit code."""
        config, counters, session, vote = self.config, self.counters, self.session, self.session.vote
        while counters.epoch < config.train.epochs and not vote.reason:
            while counters.step_in_epoch < self.sampler.steps_per_epoch and not vote.reason:
                if self._resets_optimizer():
                    self.engine.reset_optimizer()
                try:
                    self._train_step()
                except FloatingPointError as error:
                    return session.fail(
                        f"step {counters.step + 1}: {error}: lower optimizer.lr or set optimizer.clip_grad_norm; "
                        "the same command continues from the newest checkpoint"
                    )
                is_last = counters.step_in_epoch == self.sampler.steps_per_epoch
                every = config.checkpoint.every
                if every and counters.step % every == 0 and not is_last and not vote.reason:
                    self._save()
                session.report_saves()
            self._validate()
            if not vote.reason:
                counters.epoch, counters.step_in_epoch = counters.epoch + 1, 0
            self._save()
        self._test()
        return session.finish()

    def _resets_optimizer(self) -> bool:
        """Whether the moments are set to zero before the next step, which is not the first."""
        reset, epoch, index = self.config.optimizer.reset, self.counters.epoch, self.counters.step_in_epoch
        if epoch == index == 0:
            return False
        match reset:
            case "never":
                return False
            case "stage":
                before = (epoch, index - 1) if index else (epoch - 1, self.sampler.steps_per_epoch - 1)
                return self.sampler.removal(epoch, index) != self.sampler.removal(*before)
            case "epoch":
                return index == 0
            case _:
                assert_never(reset)

    def _stage(self, epoch: int) -> int:
        return stage_at(self.config.curriculum, self.config.chosen_method, epoch)

    def _train_step(self) -> None:
        """One optimizer step.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        counters, started = self.counters, time.perf_counter()
        lr = learning_rate(self.config.optimizer.schedule, counters.step, self.session.num_steps)
        with self.session.step(self.engine.how_far):
            batch = self.sampler.step(counters.epoch, counters.step_in_epoch)
            result = self.engine.train_step(batch, lr, self.session.vote)
        counters.step_in_epoch += 1
        flops = step_flops(self.session.saved.model, batch)
        counters.count_step(tokens=batch.num_tokens, flops=flops, skipped=result.skipped)
        self._log(batch, result, lr, flops, time.perf_counter() - started)

    def _log(self, batch: StepBatch, result: FinetuneStepResult, lr: float, flops: float, step_time_s: float) -> None:
        if self.session.metrics is None:
            return
        cost = self.session.cost(tokens=batch.num_tokens, flops=flops, seconds=step_time_s)
        self.session.metrics.log_step(
            FinetuneRow(
                run_id=self.session.identity.run_id,
                config=self.session.identity.config,
                step=self.counters.step,
                epoch=self.counters.epoch,
                stage=self._stage(self.counters.epoch),
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                thoughts_per_example=batch.num_thoughts / batch.num_examples,
                examples_per_s=batch.num_examples / step_time_s,
                tokens_per_s=cost.tokens_per_s,
                flops_per_s=cost.flops_per_s,
                mfu_pct=cost.mfu_pct,
                step_time_s=cost.seconds,
                **work_fields(self.session.work),
                memory_gib=peak_memory_gib(self.groups.device),
                skipped=self.counters.skipped,
            )
        )

    def _validate(self) -> None:
        """Answer the validation questions as the stage of this epoch does, if it is time, and keep the weights if they
        are the best of the last stage."""
        config, counters = self.config, self.counters
        done = counters.epoch + 1
        if self.session.vote.reason or (done % config.validation.every and done != config.train.epochs):
            return
        self.groups.phase.enter("validation")
        stage = self._stage(counters.epoch)
        with self.engine.whole_model() as (model, stop_classifier):
            tally = self.answering.score(model, stop_classifier, self.validation, stage)
        if tally is None:
            return
        row = self._row(tally, self.validation, "validation", stage, counters)
        if self.session.metrics is not None:
            log_row(self.session.metrics, row)
        if stage == final_stage(config.curriculum, config.chosen_method) and row.accuracy > counters.best_accuracy:
            counters.best_accuracy, counters.best_step = row.accuracy, counters.step
            self._save_best()

    def _test(self) -> None:
        """Answer the test questions with the best weights, once, at the end of the run."""
        config, counters = self.config, self.counters
        is_over = counters.epoch == config.train.epochs and not self.session.vote.reason
        if self.test is None or not is_over or counters.best_accuracy < 0:
            return
        rows = JsonLines(self.session.directory / "eval" / RESULTS).read(CoconutRow)
        inputs = inputs_of(self.test, self.session.tokenizer.sha256)  # data.test may be corrected
        found = any((row.split, row.step, row.inputs) == ("test", counters.best_step, inputs) for row in rows)
        is_there = torch.tensor(int(found), device=self.groups.device)
        dist.broadcast(is_there, src=0)  # rank 0 writes the rows, and others may not see them yet
        if is_there:
            return
        reader, _ = open_checkpoint(self.session.directory / BEST, counters.best_step)
        model = load_stage(self.session.saved, config.parallel, self.groups, reader)
        stage = final_stage(config.curriculum, config.chosen_method)
        tally = self.answering.score(model, load_stop_classifier(reader, model), self.test, stage)
        if tally is not None and self.session.metrics is not None:
            best = replace(Counters.read(reader.meta), step=counters.best_step)
            log_row(self.session.metrics, self._row(tally, self.test, "test", stage, best))

    def _row(self, tally: Tally, questions: ExampleSet, split: Split, stage: int, counters: Counters) -> CoconutRow:
        epoch = (counters.step - 1) // self.sampler.steps_per_epoch
        return self.answering.row(
            tally, questions, split, stage, counters=counters, epoch=epoch, identity=self.session.identity
        )

    def _examples(self, split: Split) -> ExampleSet:
        track = tracked if self.session.rank == 0 else untracked
        section, seed = getattr(self.config.data, split), self.config.run.seed
        with self.session.interruptible():
            return load_example_set(section, split, seed, self.session.tokenizer, track)

    def _meta(self) -> dict[str, Any]:
        return {"finetune": self.config.model_dump(mode="json"), "examples_sha256": examples_sha256(self.train)}

    def _save(self) -> None:
        """Start saving everything that a resumed run needs."""
        self.engine.check_weights()
        self.session.save(self.engine.pieces(), {**self._meta(), **self.engine.meta()})

    def _save_best(self) -> None:
        """Save the weights alone, beside those that were best until now: after a kill the checkpoint to go on from may
        still name these."""
        directory = self.session.directory / BEST
        store = open_store(directory / CHECKPOINTS, keep_last=2, keep_every=0, asynchronous=False)
        store.save(self.counters.step, self.engine.weights(), self.session.meta(self._meta()))
        store.wait()
        if self.session.rank == 0:
            self.session.describe(directory)

    def _resume(self, origin: Origin) -> None:
        """Go on from the newest good checkpoint, or start from the weights of another run, or from random ones."""
        reader = self.session.resume(RESUMABLE)
        self.session.warnings += require_last_stage(self.config, has_begun=reader is not None)
        if reader is None:
            self.sampler.require_steps()
            if origin.weights is not None:
                self.engine.load(origin.weights)
            return
        require_same_examples(reader, self.train)
        self.engine.load(reader, reader.meta)
        then, now = reader.meta["finetune"]["validation"]["every"], self.config.validation.every
        self._scored_epochs = now if now == then else 0
        self.counters = FinetuneCounters.read(reader.meta)
