"""The shell of a run, the same for pretraining and fine-tuning: everything around the training loop.

    with join_world(...) as (groups, signals), RunSession(...) as session:
        reader = session.resume(...)    # None: a new run
        session.begin(counters, ...)    # until here nothing is on disk, and an error is bad input
        ...                             # train, session.vote, session.save(...)
        return session.finish()         # or session.fail(why)

An error after `begin` ends the run as `session.fail` does: file `state` says failed, and why; but the exit code is 1.
"""

import contextlib
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist

from pretrain.checkpoint.commit import set_aside
from pretrain.checkpoint.counters import Counters
from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, parse_step
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import require_tokenizer
from pretrain.checkpoint.store import open_store
from pretrain.command.console import DIVERGED, RunFailed, describe_error
from pretrain.config.layout import Layout
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer, read_tokenizer
from pretrain.device.hardware import DTYPES, device_name, peak_flops, precision_warning
from pretrain.parallel.contact import describe_loss
from pretrain.parallel.groups import Groups, gather_lists
from pretrain.parallel.stop_vote import StopVote
from pretrain.rows.identity import RunIdentity
from pretrain.rows.step import StepCost
from pretrain.run.directory import describe_run, read_state, tokenizer_copy, write_state
from pretrain.run.logger import RunMetrics
from pretrain.run.owner import Ownership, sees_owner
from pretrain.run.resume import Resumable, newest_on_all_ranks
from pretrain.run.signals import StopSignal
from pretrain.run.step_profile import StepProfile
from pretrain.run.stragglers import ReplicaWork, Stragglers
from pretrain.run.time_left import Work
from pretrain.run.watchdog import Watchdog
from pretrain.run.world import SessionConfig

SETTLE_S = 60.0
"""How long a rank with an error waits for a checkpoint that is being written, before its end ends the other ranks."""


def _went_on_from(config: Mapping[str, Any], step: int) -> bool:
    """Whether a checkpoint was made by a run that was told to resume from this very step, and so comes after it."""
    return config["checkpoint"].get("resume") == step


def _lost_contact(error: BaseException) -> str | None:
    """One line if it means that another rank has gone."""
    return describe_loss(error) if isinstance(error, RuntimeError) else None


class RunSession:
    """One rank of a run. A context manager that ends logs and says how the run ended. All ranks make the same calls.

    Args:
        config: of the run.
        layout: how a step lies on the ranks.
        groups: process groups of this rank.
        signals: stop signals that this rank got.
        saved: the model, as checkpoints describe it.
        identity: of a run that begins now; one that goes on has that of its checkpoint.
        tokenizer: of the model.
        results: name of the file of evaluation rows.
        keep_every: every checkpoint at a multiple of this step count is kept; 0 = none.
        asynchronous: checkpoints are written in the background.

    Raises:
        OSError: what an earlier start left unfinished cannot be cleaned up.
    """

    def __init__(
        self, config: SessionConfig, layout: Layout, groups: Groups, signals: StopSignal, saved: SavedModel,
        tokenizer: Tokenizer, identity: RunIdentity, *, results: str, keep_every: int = 0, asynchronous: bool = True,
    ) -> None:  # fmt: skip
        self.config, self.layout, self.groups, self.saved, self.tokenizer = config, layout, groups, saved, tokenizer
        self.identity = identity
        self.rank, self.directory = dist.get_rank(), config.run.directory
        self.vote = StopVote(self._stop_request, groups.device, groups.phase)
        self.work: ReplicaWork | None = None
        """How long the replicas worked in the last step, if there are several."""
        hosts = gather_lists([socket.gethostname()])
        self._stragglers = Stragglers(config.ranks, hosts, config.parallel.tensor, layout)
        self._profile = StepProfile(config.profile, self.directory, self.rank, self.say)
        self.warnings: list[str] = []
        self.notes: list[str] = []
        """Said when the run begins, as are the warnings."""
        self.counters, self.num_steps = Counters(), 0
        self.metrics: RunMetrics | None = None
        """On rank 0, from `begin` on."""
        self._peak_flops = peak_flops(groups.device, DTYPES[saved.precision])
        self._signals, self._started, self._results = signals, time.monotonic(), results
        self._has_begun, self._outcome = False, ""
        self._keep_every, self._asynchronous = keep_every, asynchronous
        self._ownership = Ownership(self.directory, lost=self._lose, say=lambda text: print(text, file=sys.stderr))
        self._is_lost = False
        self._logged_every, self._watch = 0, contextlib.ExitStack()
        self._set_aside: list[Path] = []
        self._goes_on = False
        """From a checkpoint; else it begins, whatever an earlier start has left."""

    def __enter__(self) -> Self:
        self._claim()
        try:
            self._store = open_store(
                self.directory / CHECKPOINTS, keep_last=self.config.checkpoint.keep_last, keep_every=self._keep_every,
                asynchronous=self._asynchronous, on_wait=self.groups.phase.tick,
            )  # fmt: skip
        except BaseException:
            self._ownership.release()
            raise
        minutes = self.config.ranks.hang_minutes
        if minutes is not None:
            dog = Watchdog(self.directory, self.rank, self.layout.world_size, self.groups.phase, 60 * minutes)
            self._watch.enter_context(dog)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._has_begun and isinstance(error, Exception) and not _lost_contact(error):
            self._store.settle(SETTLE_S)
            self.report_saves()
        self._profile.close()
        if self.metrics is not None:
            self.metrics.close()
            if self._outcome:  # only now: the progress display is gone
                self.say(self._outcome)
        try:
            if self._has_begun and isinstance(error, (ValueError, OSError)):
                why = describe_error(error)
                with contextlib.suppress(OSError):  # what failed may be this very folder
                    write_state(self.directory, f"failed: {why.partition(chr(10))[0]}")
                raise RunFailed(why) from error
            if self._has_begun and error is not None:
                self._say_ended(error)
        finally:
            self._watch.close()
            self._ownership.release()

    def _say_ended(self, error: BaseException) -> None:
        """Let `state` not say for ever that the run is running: a bug, Ctrl-C, or a rank that was killed without a
        word. What a rank said is left as it is."""
        first_line = f"{type(error).__name__}: {error}".removesuffix(": ").partition("\n")[0]
        with contextlib.suppress(OSError):
            if read_state(self.directory) == "running":
                write_state(self.directory, f"failed: {_lost_contact(error) or first_line}")

    def resume(self, resumable: Resumable) -> CheckpointReader | None:
        """The newest good checkpoint, to go on from; None where there is none. The random state is the saved one.

        Raises:
            ValueError: no checkpoint is good, or the newest one is not of this run.
            OSError: a checkpoint cannot be read.
        """
        folder, at = self.directory / CHECKPOINTS, self.config.checkpoint.resume
        if at == "never":
            found = list_checkpoints(folder)
            if found:
                raise ValueError(
                    f"{folder} holds {found[0].name}, but checkpoint.resume=never: "
                    "choose another run.name or resume=auto"
                )
            return None
        reader, problems = newest_on_all_ranks(self.directory, keep_verdicts=True)
        if isinstance(at, int) and not (reader and _went_on_from(reader.meta[resumable.config], at)):
            reader, problems = newest_on_all_ranks(self.directory, step=at)
            if reader is None:
                raise ValueError(
                    "\n".join([*problems, f"checkpoint.resume={at}: {folder} has no good checkpoint of it"])
                )
            self._set_aside = [path for path in list_checkpoints(folder) if (parse_step(path.name) or 0) > at]
        if reader is None:
            if problems:
                advice = "move the folder away to start from step 0, or choose another run.name"
                raise ValueError("\n".join([*problems, f"{folder}: no good checkpoint is left; {advice}"]))
            return None
        self.notes += resumable.compare(reader, self.config)
        self._logged_every = math.lcm(self.config.logging.every, reader.meta[resumable.config]["logging"]["every"])
        require_tokenizer(reader, self.saved.tokenizer, self.tokenizer.sha256)
        torch.set_rng_state(reader.read_whole("rng/cpu"))
        self.identity = replace(self.identity, run_id=RunIdentity.read(reader.meta).run_id)
        self.warnings += problems
        self._goes_on = True
        return reader

    def begin(
        self, counters: Counters, num_steps: int, more: str = "", *, scored_every: int = 0,
        diagnosed_every: int | None = None, work: Work | None = None,
    ) -> None:  # fmt: skip
        """Write down what the run is: only now, as a configuration that does not fit the run leaves no trace in it.

        Args:
            counters: of the run; the loop counts with them from here on.
            num_steps: steps of the whole run.
            more: said with the first line.
            scored_every: a run that goes on has evaluation rows of all multiples of this; 0 if nobody knows.
            diagnosed_every: the same of rows of hooks; None if there are no hooks.
            work: of each step, by which the ETA counts. Default: each has as much.

        Raises:
            ValueError: it is beyond that.
            OSError: the run directory cannot be written.
        """
        if counters.step > num_steps:
            raise ValueError(
                f"{self.directory} is at step {counters.step}, beyond the {num_steps} steps of this configuration: "
                "raise train.steps or train.epochs, or go back with checkpoint.resume=STEP"
            )
        self.counters, self.num_steps = counters, num_steps
        self._has_begun = True
        if self.rank == 0:
            self.describe(self.directory)
            write_state(self.directory, "running")
            self.notes += [f"set aside: {set_aside(path)}" for path in self._set_aside]
            self.metrics = RunMetrics(
                self.config, self.directory, num_steps=num_steps,
                resumed_step=counters.step if self._goes_on else None, results=self._results,
                logged_every=self._logged_every, scored_every=scored_every, diagnosed_every=diagnosed_every, work=work,
            )  # fmt: skip
        for warning in (*self.warnings, precision_warning(self.groups.device, DTYPES[self.saved.precision])):
            if warning:
                self.say(f"warning: {warning}")
        for note in self.notes:
            self.say(note)
        how = "resumed" if counters.step else "started"
        self.say(f"step {counters.step} of {num_steps}: {how} {self.directory}{more}")

    def describe(self, directory: Path) -> None:
        """Write configuration, environment and tokenizer into a run directory.

        Raises:
            OSError: it cannot be written.
        """
        describe_run(
            directory, self.config,
            ranks=f"{self.layout.world_size} = {self.groups.describe()}",
            device=device_name(self.groups.device),
            tokenizer=read_tokenizer(self.saved.tokenizer),
            tokenizer_path=tokenizer_copy(directory, self.saved.tokenizer),
        )  # fmt: skip

    def cost(self, *, tokens: int, flops: float, seconds: float) -> StepCost:
        """What a step took, by the peak of all ranks' devices together."""
        if self._peak_flops is not None and self.groups.device.type == "cpu":  # it was measured, and this is faster
            self._peak_flops = max(self._peak_flops, flops / seconds / self.layout.world_size)
        peak = self._peak_flops and self._peak_flops * self.layout.world_size
        return StepCost(tokens=tokens, flops=flops, seconds=seconds, peak_flops=peak)

    @contextlib.contextmanager
    def step(self, how_far: Callable[[], str]) -> Iterator[None]:
        """Where a step is done, data and all; the first one shows how far it is, as it may take minutes."""
        number, phase = self.counters.step + 1, self.groups.phase
        phase.enter("data", step=number)
        shown: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.metrics is not None and phase.is_starting:
            shown = self.metrics.first_step(number, how_far)
        with shown, self._profile.step(number):
            yield
        phase.enter("log")
        phase.is_starting = False
        self.work, line = self._stragglers.on_step(self.vote.work_s)
        if line:
            self.say(line)

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Before `begin`: work that may take long, which Ctrl-C ends at once."""
        return self._signals.interruptible()

    def say(self, text: str) -> None:
        """Show a line, on rank 0."""
        if self.metrics is not None:
            self.metrics.message(text)

    def save(self, pieces: list[Piece], meta: dict[str, Any]) -> None:
        """Start saving everything that a resumed run needs.

        Args:
            pieces: this rank's tensors.
            meta: what else is needed, as JSON values.
        """
        self.groups.phase.enter("save")
        if self.rank == 0:
            pieces.append(Piece.whole("rng/cpu", torch.get_rng_state()))
        if self.metrics is not None:
            self.metrics.sync()
        self._store.save(self.counters.step, pieces, self.meta(meta))

    def meta(self, more: dict[str, Any]) -> dict[str, Any]:
        """What every checkpoint says of the run and its model, and more."""
        return {
            "counters": asdict(self.counters),
            "saved_model": self.saved.model_dump(mode="json"),
            "identity": self.identity.as_meta(),
            "tokenizer_sha256": self.tokenizer.sha256,
            **more,
        }

    def report_saves(self) -> None:
        """Say which checkpoints have been saved, or not, since the last call."""
        for result in self._store.poll():
            self.say(result.message if result.is_durable else f"warning: {result.message}")

    def checkpoint_before(self, step: int) -> CheckpointReader | None:
        """The newest good checkpoint from before a step, to go back to; None where there is none. Collective."""
        with contextlib.suppress(OSError):  # of a save that failed: it has been said
            self._store.wait()
        self.report_saves()
        return newest_on_all_ranks(self.directory, before=step)[0]

    def go_back(self) -> None:
        """Be at an earlier step, which the counters have again: later rows go, and later checkpoints are set aside.
        Collective."""
        if self.metrics is not None:
            self.metrics.go_back(self.counters.step)
            for path in list_checkpoints(self.directory / CHECKPOINTS):
                if (parse_step(path.name) or 0) > self.counters.step:
                    self.say(f"set aside: {set_aside(path)}")
        dist.barrier()

    def finish(self) -> int:
        """End the run as complete, or as stopped if the ranks voted so; returns the exit code."""
        reason = self.vote.reason
        state = f"stopped by {reason}" if reason else "complete"
        advice = ", the same command continues it" if reason else ""
        self._end(state, f"step {self.counters.step} of {self.num_steps}: {state}{advice}")
        return 0

    def fail(self, why: str) -> int:
        """End the run as failed because its numbers are no longer finite, or because of an alarm, as all ranks found;
        returns the exit code."""
        self._end(f"failed: {why}", f"error: {why}")
        return DIVERGED

    def _end(self, state: str, outcome: str) -> None:
        self._store.wait()
        self.report_saves()
        self._outcome = outcome
        if self.rank == 0:
            write_state(self.directory, state)

    def _claim(self) -> None:
        """Own the run directory, on all ranks: rank 0 writes its name there, and the others look for it. Collective.

        Raises:
            ValueError: it has another live owner, or a rank does not see it.
            OSError: it cannot be written.
        """
        before, error = "", None
        if self.rank == 0:
            try:
                before = self._ownership.take()
            except (ValueError, OSError) as caught:
                error = caught
        claim: list[Any] = [self._ownership.owner.nonce, error]
        dist.broadcast_object_list(claim, src=0, device=torch.device("cpu"))
        if claim[1] is not None:
            raise claim[1]
        blind = f"rank {self.rank} on {socket.gethostname()} does not see {self.directory}, where rank 0 wrote just now"
        problem = [] if sees_owner(self.directory, claim[0]) else [f"{blind}: run.root must be a shared file system"]
        problems = gather_lists(problem)
        if problems:
            self._ownership.release()
            raise ValueError(problems[0])
        if before:
            self.notes.append(f"took the run directory over from {before}, which has ended")

    def _lose(self) -> None:
        self._is_lost = True

    def _stop_request(self) -> str | None:
        """Why this rank wants to stop.

        Raises:
            RunFailed: the directory has another owner now.
        """
        if self._is_lost:
            self._has_begun = False  # not a word more into it
            raise RunFailed(f"another process took {self.directory} over while this one stood still: this one ends")
        minutes = self.config.train.exit_after
        if self._signals.requested is None and minutes is not None and time.monotonic() - self._started > 60 * minutes:
            return "train.exit_after"
        return self._signals.requested
