"""The training run: load or start, then for every step batch, loops, update, log, maybe validate, maybe save, stop if
asked.

Everything that varies from step to step (learning rate, loop count, data) is a function of the step and the seed, or in
the checkpoint, so a resumed run is the uninterrupted one, and neither depends on the ranks it runs on. What surrounds
the loop: `pretrain/run/session.py`.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import require_tokenizer
from pretrain.config.alarms import Policy
from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel, require_vocabulary
from pretrain.data.extent import measure
from pretrain.data.stream.cursor import FIELDS
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.device.hardware import device_memory, peak_memory_gib
from pretrain.device.host_memory import installed_memory
from pretrain.eval.validation import Validation
from pretrain.model.count import train_flops_per_token
from pretrain.optim.learning_rate import learning_rate
from pretrain.optim.loop_count import StepLoops, step_loops
from pretrain.parallel.engine import Engine, StepResult
from pretrain.parallel.groups import Groups, gather_lists
from pretrain.parallel.replica_loader import CURSORS, ReplicaLoader
from pretrain.parallel.room import require_host
from pretrain.plan.room import data_needs, model_needs, require_room
from pretrain.report.page import write_last_report
from pretrain.rows.alarms import AlarmRow
from pretrain.rows.diagnostics import diagnostics_row
from pretrain.rows.evaluation import EvaluationRow, ResultKey, ScoredModel
from pretrain.rows.identity import RunIdentity, digest, loops_of
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.step import MetricsRow
from pretrain.run.other_runs import saved_teacher
from pretrain.run.pretraining import RESUMABLE, PretrainCounters
from pretrain.run.resume import compare_models, newest_on_all_ranks
from pretrain.run.session import RunSession
from pretrain.run.signals import StopSignal
from pretrain.run.stragglers import work_fields
from pretrain.run.time_left import work_of_steps
from pretrain.run.world import join_world
from pretrain.watch.alarms import Alarm, Alarms
from pretrain.watch.hooks import Hooks

if TYPE_CHECKING:
    from pretrain.eval.in_loop import TaskEvaluation

RESULTS = "depth.jsonl"
"""Evaluation rows, in `eval/` of the run directory."""


def run(config: RunConfig, layout: Layout) -> int:
    """Train on the ranks of this world; every rank calls it. Returns the exit code.

    Raises:
        ValueError: naming what in configuration, data or run directory does not fit.
        OSError: storage failed.
        RunFailed: either of these, after the run had begun.
    """
    tokenizer = Tokenizer.load(config.data.tokenizer)
    require_vocabulary(config.model, config.data.tokenizer, tokenizer.vocab_size)
    require_room(data_needs(config, layout, len(FIELDS)), installed_memory(), "this machine")
    with join_world(config) as (groups, signals):
        require_room(model_needs(config, layout, saved_teacher(config)), *device_memory(groups.device))
        require_host(config, layout, groups)
        opened = open_session(config, layout, groups, tokenizer, signals)
        with opened as session, Trainer(config, session) as trainer:
            code = trainer.run()
            write_last_report(session)
            return code


def open_session(
    config: RunConfig, layout: Layout, groups: Groups, tokenizer: Tokenizer, signals: StopSignal
) -> RunSession:
    """The shell of a pretraining run."""
    return RunSession(
        config, layout, groups, signals, SavedModel.of(config), tokenizer,
        RunIdentity.of(config, trained_loops=loops_of(config)), results=RESULTS,
        keep_every=config.checkpoint.keep_every, asynchronous=config.checkpoint.asynchronous,
    )  # fmt: skip


class Trainer:
    """One rank of a run. A context manager that ends the loader."""

    def __init__(self, config: RunConfig, session: RunSession) -> None:
        self.config, self.session, self.groups = config, session, session.groups
        self.counters, self.results = PretrainCounters(), session.directory / "eval" / RESULTS
        layout, groups = session.layout, session.groups
        self.loader = ReplicaLoader(
            config.data, groups, seed=config.run.seed, seq_len=config.train.seq_len,
            global_batch=config.train.global_batch,
        )  # fmt: skip
        session.identity = replace(session.identity, data=digest(self.loader.fingerprints))
        self.validation = Validation(config, layout, groups) if config.validation.every else None
        reader = session.resume(RESUMABLE)
        self.engine = Engine(config, groups, session.tokenizer.separators, drawn=reader is None)
        session.notes += self.engine.notes
        if self.engine.teacher is not None:
            require_tokenizer(self.engine.teacher.reader, session.saved.tokenizer, session.tokenizer.sha256)
        self.tasks = self._task_evaluation() if config.validation.tasks_every else None
        self.hooks = Hooks(config, layout, self.engine, session.say)
        self.alarms = Alarms(config.alarms)
        self._scored_every, self._diagnosed_every = 0, self.hooks.rows_every(None)
        self._fill(reader)
        for task in self.tasks.skipped if self.tasks else ():
            session.warnings.append(f"skipped {task.name}: {task.reason}")
        if config.model.loop.exit != "none" and config.train.loop_loss.over != "expected":
            given = f"model.loop.exit={config.model.loop.exit}"
            over = config.train.loop_loss.over
            session.warnings.append(f"{given} learns nothing from train.loop_loss.over={over}: it needs expected")
        self._describe_data()
        session.begin(
            self.counters, config.train.steps, scored_every=self._scored_every, diagnosed_every=self._diagnosed_every,
            work=work_of_steps(self.engine.config),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()

    def run(self) -> int:
        """Train until the last step or until the ranks vote to stop; returns the exit code."""
        config, counters, session, vote = self.config, self.counters, self.session, self.session.vote
        if counters.step or config.checkpoint.init_from:  # what a stop left undone, or what the weights were worth
            self._validate(missing_alone=True)
            self._score_tasks()
        while counters.step < config.train.steps and not vote.reason:
            started = time.perf_counter()
            first_sample = self.loader.next_sample
            loops = step_loops(config.model, config.train, config.run.seed, counters.step, first_sample)
            own_loops = self.loader.own(loops.counts)
            lr = learning_rate(config.optimizer, counters.step, config.train.steps)
            with session.step(self.engine.ring.how_far):
                rows = self.loader.next_batch()
                result = self.engine.train_step(
                    rows, own_loops, lr, vote, backprop_loops=loops.backprop_loops,
                    regulariser_share=loops.regulariser_share, short_loops=loops.short_loops,
                )  # fmt: skip
            self._count(result, loops, lr, started)
            self._watch(result)
            if counters.skipped_in_a_row >= config.train.max_bad_steps:
                return session.fail(
                    f"loss or gradient was not finite in {counters.skipped_in_a_row} steps in a row; "
                    "lower optimizer.lr, or resume from an earlier checkpoint"
                )
            self._validate()
            if (exit_code := self._answer_alarms()) is not None:
                return exit_code
            self._score_tasks()
            is_last = counters.step == config.train.steps
            if is_last or vote.reason or (config.checkpoint.every and counters.step % config.checkpoint.every == 0):
                self._save()
            session.report_saves()
        if counters.skipped_in_a_row:
            session.say(
                f"warning: the last {counters.skipped_in_a_row} steps were skipped, their loss or gradient not finite: "
                "do not trust these weights; checkpoint.resume=STEP goes back"
            )
        return session.finish()

    def _count(self, result: StepResult, loops: StepLoops, lr: float, started: float) -> None:
        """Count a step and log it."""
        train, counters, session = self.config.train, self.counters, self.session
        tokens = train.global_batch * train.seq_len
        of_token = partial(
            train_flops_per_token, self.config.model, train.seq_len, outputs=train.loop_loss.outputs,
            backprop_loops=loops.backprop_loops,
        )  # fmt: skip
        flops = train.seq_len * sum(count * of_token(num_loops) for num_loops, count in Counter(loops.counts).items())
        counters.count_step(tokens=tokens, flops=flops, skipped=result.skipped)
        counters.skipped_in_a_row = counters.skipped_in_a_row + 1 if result.skipped else 0
        if session.metrics is None:
            return
        cost = session.cost(tokens=tokens, flops=flops, seconds=time.perf_counter() - started)
        session.metrics.log_step(
            MetricsRow(
                run_id=session.identity.run_id,
                config=session.identity.config,
                step=counters.step,
                tokens_seen=counters.tokens_seen or 0,
                loss=result.loss,
                regularisation=result.regularisation,
                objective=result.objective,
                grad_norm=result.grad_norm,
                lr=lr,
                num_loops=loops.mean,
                tokens_per_s=cost.tokens_per_s,
                flops_per_s=cost.flops_per_s,
                mfu_pct=cost.mfu_pct,
                step_time_s=cost.seconds,
                **work_fields(session.work),
                memory_gib=peak_memory_gib(self.groups.device),
                skipped=counters.skipped,
            )
        )

    def _is_due(self, every: int) -> bool:
        """Whether something is due: at multiples of `every` and at the last step, unless the ranks voted to stop."""
        step = self.counters.step
        return not self.session.vote.reason and (step % every == 0 or step == self.config.train.steps)

    def _validate(self, *, missing_alone: bool = False) -> None:
        """Score the validation sequences at every loop count, if it is time.

        Args:
            missing_alone: rows of this step may be in the file: only those that are not are made.
        """
        if self.validation is None or not self._is_due(self.config.validation.every):
            return
        self.groups.phase.enter("validation")
        loops = tuple(dict.fromkeys(self.config.validation_loops))
        if missing_alone:
            loops = self._loops_without_row(loops)
        losses = self.validation.losses(self.engine, loops, self.session.vote) if loops else None
        if losses is not None:
            of = partial(
                self._scored_model().row, "validation", "validation", "nll", is_main=True,
                num_examples=self.validation.num_sequences, inputs=self.validation.inputs,
            )  # fmt: skip
            self._report_rows(
                [
                    of(loss, num_loops=num_loops, stderr=stderr)
                    for num_loops, (loss, stderr) in zip(loops, losses, strict=True)
                ]
            )
            found = {num_loops: loss for num_loops, (loss, _) in zip(loops, losses, strict=True)}
            if not missing_alone or len(loops) == len(set(self.config.validation_loops)):
                self.alarms.on_validation(self.counters.step, found)
                self._diagnose(self.hooks.on_validation(self.counters.step, found))

    def _watch(self, result: StepResult) -> None:
        """Let hooks and alarms look at a step."""
        step = self.counters.step
        self.alarms.on_step(step, result.loss)
        numbers = self.hooks.on_step(step, result)
        if self.hooks.has_loop_diagnostics:
            self.alarms.on_diagnostics(step, numbers)
        self._diagnose(numbers)

    def _answer_alarms(self) -> int | None:
        """Do what the policies of the alarms say; returns the exit code where the run ends by one."""
        session, counters, settings = self.session, self.counters, self.config.alarms
        for alarm in self.alarms.take():
            action, reader, text = alarm.policy, None, alarm.text
            if action == "rollback":
                is_over = counters.rollbacks >= settings.max_rollbacks
                reader = None if is_over else session.checkpoint_before(alarm.since)
                if reader is None:
                    action = "stop"
                    why = f"after {counters.rollbacks} rollbacks" if is_over else "with no checkpoint to go back to"
                    text = f"{text}; {why} the run stops"
            self._report_alarm(alarm, action, text, None if reader is None else reader.step)
            if reader is not None:
                self._go_back(reader)
                return None
            if action == "stop":
                self._save()
                return session.fail(f"{text}; checkpoint.resume=STEP goes back")
        return None

    def _report_alarm(self, alarm: Alarm, action: Policy, text: str, to_step: int | None) -> None:
        identity, metrics = self.session.identity, self.session.metrics
        if metrics is None:
            return
        metrics.message(f"warning: {text}" + ("" if to_step is None else f"; back to step {to_step}, on with new data"))
        row = AlarmRow(
            run_id=identity.run_id, config=identity.config, step=self.counters.step, alarm=alarm.name, action=action,
            since=alarm.since, value=alarm.value, threshold=alarm.threshold, to_step=to_step,
            next_sample=None if to_step is None else self.loader.next_sample,
        )  # fmt: skip
        metrics.log_alarm(row)

    def _go_back(self, reader: CheckpointReader) -> None:
        """Be as a checkpoint has it, but for the data: it goes on with the samples that come now. What it is now is
        saved as of that step, so that a resumed run does not read the old ones again."""
        rollbacks = self.counters.rollbacks + 1
        self.engine.load(reader, reader.meta["num_updates"])
        vars(self.counters).update(vars(PretrainCounters.read(reader.meta)) | {"rollbacks": rollbacks})
        self.alarms = Alarms(self.config.alarms, reader.meta.get("alarms"))
        self.session.go_back()
        self._save()

    def _diagnose(self, numbers: Mapping[str, float]) -> None:
        """Keep what the hooks found."""
        if numbers and self.session.metrics is not None:
            self.session.metrics.log_diagnostics(diagnostics_row(self.session.identity, self.counters.step, numbers))

    def _loops_without_row(self, loops: tuple[int, ...]) -> tuple[int, ...]:
        """The loop counts without a validation row of this step; rank 0 looks, as it writes them. Collective."""
        file, run, step = JsonLines(self.results), self.session.saved.run, self.counters.step
        rows = file.read(ResultKey) if self.session.rank == 0 else []
        there = [str(row.num_loops) for row in rows if (row.run, row.step, row.task) == (run, step, "validation")]
        there = gather_lists(there)
        return tuple(num_loops for num_loops in loops if str(num_loops) not in there)

    def _score_tasks(self) -> None:
        """Score the tasks, if it is time."""
        if self.tasks is not None and self._is_due(self.config.validation.tasks_every):
            self.groups.phase.enter("tasks")
            self.tasks.run(self._scored_model(), self._report_rows, self.session.say)

    def _task_evaluation(self) -> "TaskEvaluation":
        try:
            from pretrain.eval.in_loop import TaskEvaluation
        except ModuleNotFoundError as error:
            raise ValueError(
                f"validation.tasks_every={self.config.validation.tasks_every} needs the evaluation harness, "
                f"but there is no module {error.name}: bash tools/setup.sh eval"
            ) from None
        session = self.session
        return TaskEvaluation(
            self.config, self.engine.model, self.groups, session.tokenizer, self.results, session.vote
        )

    def _scored_model(self) -> ScoredModel:
        """The model as it is now."""
        return ScoredModel(saved=self.session.saved, counters=self.counters, identity=self.session.identity)

    def _describe_data(self) -> None:
        """Have it said how much text there is, and how often training and validation read it. Collective."""
        session, sequences = self.session, self.config.validation.num_sequences
        if session.rank == 0:
            try:
                extents = measure(self.config, session.tokenizer)
            except ValueError as error:
                extents = []
                session.warnings.append(f"how often the run reads its text is not known: {error}")
            session.notes += map(str, extents)
            session.warnings += [extent.warning for extent in extents if extent.warning]
        repeated = self.validation.repeated(self.groups.data) if self.validation else {}
        session.warnings += [
            f"{path}: validation.num_sequences={sequences} hold {count:,} of its documents more than once: lower it or "
            "data.num_streams, or raise data.validation_fraction"
            for path, count in repeated.items()
        ]

    def _report_rows(self, rows: list[EvaluationRow]) -> None:
        if self.session.metrics is not None:
            self.session.metrics.log_evaluation(rows)

    def _save(self) -> None:
        """Start saving everything that a resumed run needs."""
        self.engine.check_weights()
        cursors = self.loader.state()
        pieces = self.engine.pieces()
        if self.session.rank == 0:
            assert cursors is not None, "rank 0 reads"
            pieces.append(Piece.whole(CURSORS, cursors))
        meta = {
            "num_updates": self.engine.num_updates,
            "next_sample": self.loader.next_sample,
            "sources": self.loader.fingerprints,
            "config": self.config.model_dump(mode="json"),
            "alarms": self.alarms.as_meta(),
        }
        self.session.save(pieces, meta)

    def _fill(self, reader: CheckpointReader | None) -> None:
        """Continue from a checkpoint, if there is one, or start from the weights of another run, if one is named."""
        config = self.config
        if reader is not None:
            self.engine.load(reader, reader.meta["num_updates"])
            self.loader.load_state(reader, reader.meta)
            self.counters = PretrainCounters.read(reader.meta)
            self.alarms = Alarms(config.alarms, reader.meta.get("alarms"))
            then, now = reader.meta["config"]["validation"]["every"], config.validation.every
            self._scored_every = now if now == then else 0
            self._diagnosed_every = self.hooks.rows_every(reader.meta["config"]["train"].get("hooks"))
        elif config.checkpoint.init_from is not None:
            self._start_from(Path(config.checkpoint.init_from))

    def _start_from(self, run_dir: Path) -> None:
        """Take the newest good weights of another run."""
        reader, problems = newest_on_all_ranks(run_dir)
        if reader is None:
            raise ValueError("\n".join([*problems, f"checkpoint.init_from={run_dir}: no good checkpoint there"]))
        session = self.session
        require_tokenizer(reader, session.saved.tokenizer, session.tokenizer.sha256, ": use the one in there")
        session.notes += compare_models(reader, self.config.model, self.config.train.seq_len)
        self.engine.load_weights(reader)
        session.warnings += problems
