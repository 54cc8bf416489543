"""How a command ends: an exit code, and one line for what went wrong. A traceback is for bugs."""

import contextlib
import sys
from collections.abc import Callable, Iterable

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
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
        work()
    except (ValueError, OSError, ImportError) as error:
        print_error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    return 0


class RunFailed(Exception):  # noqa: N818
    """An error ended a run that had begun; the message is for people."""


def exit_code(error: Exception) -> int:
    """BAD_INPUT, which fails again however often it is tried, or FAILED for storage, a process or a run that had begun,
    which may not."""
    may_pass = isinstance(error, (OSError, RunFailed)) and not isinstance(error, _MISSING)
    return FAILED if may_pass else BAD_INPUT


def print_warnings(problems: Iterable[str]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)


def print_error(error: Exception, who: str = "") -> None:
    """One line of standard error for each line of the message; `who` stands before each. The exit code says it too."""
    print_line("\n".join(f"error: {who}{line}" for line in describe_error(error).splitlines()))


def print_line(line: str) -> None:
    """To standard error, at once; a display that cannot be written ends nothing."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def describe_error(error: Exception) -> str:
    """What went wrong, for people."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ImportError):
        return f"{error.name} is not installed: run tools/setup.sh with the extra of pyproject.toml that has it"
    return str(error)
