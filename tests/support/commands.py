"""Commands as users type them, each in a child of one process that has everything imported: a command costs its own
work, not the seconds in which torch, Megatron and the harness are imported. That each script also starts as a process
of its own is tested by its help (`tests/unit/test_layout.py`)."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.faults.seam import CommandServer
from tests.support.forks import resolve

LIMIT_S = 240.0


class Commands:
    """Runs `python WORDS` by a server of commands."""

    def __init__(self, server: CommandServer) -> None:
        self.server = server

    def run(
        self, *words: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None,
        forks: bool = False,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """`python -m MODULE ...` or `python FILE ...` of this project, by default from the folder that this process is
        in; a module of that folder, or beside the file, can be imported, as there. With `forks`, the commands that it
        starts are forks too."""
        folder = cwd or Path.cwd()
        module, arguments, search = resolve(words, folder)
        ended = self.server.run(
            module, arguments, environment=environment, limit_s=LIMIT_S, folder=folder, search=search, forks=forks
        )
        assert ended.code is not None, f"{' '.join(map(str, words))} hangs\n{ended.said}"
        return subprocess.CompletedProcess(words, ended.code, ended.output, ended.errors)
