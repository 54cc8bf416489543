"""How a command ends: an exit code, and one line for what went wrong. A traceback is for bugs."""

import contextlib
import io
import os
import re
import select
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pretrain.storage import LEADS_NOWHERE

BAD_INPUT, FAILED, DIVERGED, HUNG, INTERRUPTED = 2, 1, 3, 4, 130
"""A run that DIVERGED has numbers that are not finite, or an alarm whose policy is to stop, and would have them again:
like bad input, it is not worth a second try. One whose ranks HUNG is, as one that FAILED."""
MOST_CHARACTERS, _AT_THE_START, _AT_THE_END = 500, 300, 180
"""Of a line on standard error; what is kept of a longer one: where it happened, and why."""
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def run_command(work: Callable[[], None], *, interrupted: str = "interrupted") -> int:
    """Do the work of a command and report how it ended on standard error.

    Args:
        work: raises ValueError for bad input, OSError where storage or a process failed, ImportError for an extra that
            is not installed.
        interrupted: what to say on Ctrl-C.

    Returns:
        The exit code: 0, BAD_INPUT (a file that is not there among it), FAILED or INTERRUPTED.
    """
    try:
        with interruptible(), printing():
            work()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print_error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    return 0


def end_on_interrupt() -> None:
    """From now until `interruptible`, Ctrl-C ends this process at once, in one line: an interrupt of an import can come
    out of it as any other error. For entry points, before they import anything."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as behind nohup
        signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt here, also where a library makes another error of it."""
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    is_ours = before in (_end, signal.default_int_handler) and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if interrupts:
            raise KeyboardInterrupt from None
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def printing() -> Iterator[None]:
    """Print to whatever standard output is: what it cannot spell becomes a question mark, and a reader who has seen
    enough (`| head`) ends the work without a word."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_reader_gone():  # it was another pipe
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _is_reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


class RunFailed(Exception):  # noqa: N818
    """An error ended a run that had begun; the message is for people."""


def exit_code(error: Exception) -> int:
    """BAD_INPUT, which fails again however often it is tried, or FAILED for storage, a process or a run that had begun,
    which may not."""
    is_path_bad = isinstance(error, _MISSING) or (isinstance(error, OSError) and error.errno in LEADS_NOWHERE)
    may_pass = isinstance(error, (OSError, RunFailed, MemoryError)) and not is_path_bad
    return FAILED if may_pass else BAD_INPUT


def print_warnings(problems: Iterable[str]) -> None:
    for problem in problems:
        print_line(f"warning: {problem}")


def print_error(error: Exception, who: str = "") -> None:
    """One line of standard error for each line of the message; `who` stands before each. The exit code says it too."""
    print_line("\n".join(f"error: {who}{line}" for line in describe_error(error).splitlines()))


def print_line(text: str) -> None:
    """To standard error, at once; a display that cannot be written ends nothing. Of a line without end, as one that
    quotes a path or value of thousands of letters, beginning and end are shown."""
    with contextlib.suppress(OSError):
        print("\n".join(map(_cut, text.split("\n"))), file=sys.stderr, flush=True)


def _cut(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else f"{line[:_AT_THE_START]} ... {line[-_AT_THE_END:]}"


def describe_error(error: Exception) -> str:
    """What went wrong, for people."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ImportError) and error.name:
        return f"{error.name} is not installed: {_how_to_install(error.name)}"
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'no more is to be had'}"
    return str(error)


def _how_to_install(module: str) -> str:
    """The command that installs the extra which has a module."""
    package = module.partition(".")[0].replace("_", "-")
    try:
        extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    except (OSError, KeyError, ValueError):  # installed without its folder
        extras = {}
    has_it = re.compile(rf"{re.escape(package)}(?![\w-])")
    found = [extra for extra, requirements in extras.items() if any(map(has_it.match, requirements))]
    return " ".join(["bash tools/setup.sh", *found[:1]])
