"""The hooks of a run: called in their order, on all ranks, and what goes wrong in them. The contract: `hook.py`.

A rank whose hook raised an error tells the others after the call, by messages that no collective of a hook on another
rank is mixed with. They may not come to listen: they wait for it in a collective of the hook. So it waits for them no
longer than the hook can take, and ends; its end wakes them, and they read in the run directory what it had to say.
"""

import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any, NoReturn

import torch

from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.parallel.contact import describe_loss
from pretrain.parallel.engine import Engine, StepResult
from pretrain.parallel.groups import gather_lists
from pretrain.parallel.host import any_rank
from pretrain.run.directory import read_state
from pretrain.schema.plugin import describe_plugin_error
from pretrain.watch.hook import Hook, Numbers, WatchedRun
from pretrain.watch.loop_diagnostics import LoopDiagnostics
from pretrain.watch.registry import make_hook

RESERVED = ("step", "run_id", "config")
"""Names in a row that say what it is of."""
PATIENCE_S, PATIENCE_CALLS = 20.0, 10
"""How long a rank with an error waits for the others to leave the hook: so long, and so often the longest call yet."""
_WHERE = "train.hooks: "
"""Begins what is said of an error in a hook."""


class _Called:
    """A hook with what is known of it."""

    def __init__(self, name: str, hook: Hook[Any], every: int) -> None:
        self.name, self.hook, self.every = name, hook, every
        self.proven: set[str] = set()
        """Its methods that have returned once."""
        self.longest_s = 0.0
        """Of its calls that have returned, the longest."""


class Hooks:
    """The hooks of a run, made on all ranks. Collective, as are the calls.

    Args:
        config: of the run.
        layout: how a step lies on the ranks.
        engine: of this rank.
        warn: shows a line, on rank 0.

    Raises:
        ValueError: a hook is unknown, or one does not fit the run.
    """

    def __init__(self, config: RunConfig, layout: Layout, engine: Engine, warn: Callable[[str], None]) -> None:
        self.run, self._warn = WatchedRun(config=config, layout=layout, engine=engine, step=0), warn
        made = [(section, make_hook(section, self.run)) for section in config.train.hooks]
        self._active = [_Called(section.name, hook, section.every or hook.every) for section, hook in made]

    @property
    def has_loop_diagnostics(self) -> bool:
        """Whether the numbers of that hook are among those of `on_step`: every rank has them alike."""
        return any(isinstance(each.hook, LoopDiagnostics) for each in self._active)

    def rows_every(self, saved: Any) -> int | None:
        """Of a run that goes on from a checkpoint with these hooks, as JSON: there should be a row of every multiple of
        this. 0: nobody knows; None: there are no hooks."""
        if not self._active:
            return None
        regular = [each.every for each in self._active if each.hook.is_regular]
        now = [section.model_dump(mode="json") for section in self.run.config.train.hooks]
        return min(regular) if regular and saved == now else 0

    def on_step(self, step: int, result: StepResult) -> dict[str, float]:
        """What the hooks that are due find after a step."""
        due = [each for each in self._active if step % each.every == 0]
        return self._call("on_step", due, step, result)

    def on_validation(self, step: int, losses: Mapping[int, float]) -> dict[str, float]:
        """What the hooks find after a validation."""
        return self._call("on_validation", list(self._active), step, losses)

    def _call(self, method: str, due: list[_Called], step: int, argument: Any) -> dict[str, float]:
        due = [each for each in due if getattr(type(each.hook), method) is not getattr(Hook, method)]
        self.run.step, found = step, {}
        for each in due:
            problem, own, began = None, {}, time.monotonic()
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    numbers = getattr(each.hook, method)(self.run.engine.model, argument)
                own = _checked(numbers, found)
                each.longest_s = max(each.longest_s, time.monotonic() - began)
            except Exception as error:
                if isinstance(error, RuntimeError) and describe_loss(error):
                    self._repeat(error)
                told = describe_plugin_error(error)
                problem = f"{_WHERE}{each.name}.{method} at step {step}: {told}"
            if self._is_well(each, method, problem):
                found |= own
        return found

    def _is_well(self, each: _Called, method: str, problem: str | None) -> bool:
        """Whether a call went well, as all ranks agree; a hook whose later call did not is switched off.

        Raises:
            ValueError: its first call did not, or the other ranks wait for this one in it.
        """
        if not self._has_failed(each, problem):
            each.proven.add(method)
            return True
        line = gather_lists([] if problem is None else [problem])[0]
        if method not in each.proven:
            raise ValueError(line)
        self._active.remove(each)
        self._warn(f"warning: {line}; the run goes on without this hook")
        return False

    def _has_failed(self, each: _Called, problem: str | None) -> bool:
        """Whether any rank has a problem. Collective.

        Raises:
            ValueError: this one has, and others do not come to hear it; or another one has ended with one.
        """
        try:
            if problem is None:
                return any_rank(False)
            self._tell(each, problem)
        except RuntimeError as error:
            self._repeat(error)
        return True

    def _tell(self, each: _Called, problem: str) -> None:
        """Tell the others of a problem here.

        Raises:
            ValueError: they do not come to hear it.
        """
        errors: list[RuntimeError] = []

        def tell() -> None:
            try:
                any_rank(True)
            except RuntimeError as error:
                errors.append(error)

        # a thread: after a time limit of its own gloo would close all connections, which wakes the others too early
        telling = Thread(target=tell, name="hook error", daemon=True)
        telling.start()
        telling.join(PATIENCE_S + PATIENCE_CALLS * each.longest_s)
        if telling.is_alive():
            raise ValueError(f"{problem}; the other ranks wait for this one inside the hook")
        if errors:
            raise errors[0]

    def _repeat(self, error: RuntimeError) -> NoReturn:
        """Raise what a rank that is gone said of a hook, if it said that; else the error, which the loss of it is."""
        reason = read_state(self.run.config.run.directory).removeprefix("failed: ")
        if reason.startswith(_WHERE):
            raise ValueError(reason) from None
        raise error


def _checked(numbers: Numbers | None, taken: Mapping[str, float]) -> dict[str, float]:
    """A hook's numbers, beside those that the row has.

    Raises:
        ValueError: what it gave is not names with numbers, or a name is taken.
    """
    found: dict[str, float] = {}
    if numbers is None:
        return found
    if not isinstance(numbers, Mapping):
        raise ValueError(f"returned {type(numbers).__name__}, not numbers by name")
    for name, value in numbers.items():
        if not isinstance(name, str) or name in RESERVED or name in taken:
            raise ValueError(f"the name {name!r} is taken or is no text")
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name}={value!r} is no number") from None
    return found
