"""One failing call after the other: a run of a kind with it, the same command again without, and the verdict."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.names import CHECKPOINTS
from tests.faults.kinds import KINDS, RUN, Kind, checkpoints, folder_result, inputs, make_corpus, rows
from tests.faults.many_ranks import STEPS
from tests.faults.ranks import KILLED
from tests.faults.seam import CommandServer, Ended, Storage

ERRORS = (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENOENT)
KEEP_LAST = 2
"""Of the kind that resumes."""
MODULES = (
    "pretrain.train", "tests.faults.ranks", "pretrain.trainer", "pretrain.eval.evaluate", "pretrain.eval.groups",
    "pretrain.eval.harness", "pretrain.eval.scorer", "pretrain.run.trained_model", "pretrain.parallel.stage",
    "tools.eval_depth", "tools.prepare_data", "finetune.coconut", "finetune.trainer", "pyarrow.parquet", "pandas",
    "torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer", "tests.faults.warm",
)  # fmt: skip
"""What the commands import; those at the end are imported by the libraries only when they are used."""
_SAID_OF_MISSING = ("no such", "File exists", "Directory not empty")
"""Of a file that a call did not find: what we say of bad input, and what the system says of a folder found too late."""
_SAID_BY_SAFETENSORS = "it could not be opened"
_BUG = re.compile(r"Traceback|Exception ignored|Exception in thread")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A kind of run on a sound storage."""

    calls: list[str]
    """To the storage, in order."""
    result: dict[str, Any]


class Bench:
    """Where runs meet a failing storage."""

    def __init__(self, folder: Path, storage: Storage, server: CommandServer) -> None:
        self._folder, self._storage, self._server, self._root = folder, storage, server, storage.root
        make_corpus(self._root)
        self._inputs = inputs(self._root)
        self._root.rename(folder / "corpus")
        self._references: dict[str, Reference] = {}
        self._known_ends: dict[tuple[Any, ...], list[str]] = {}

    def reference(self, name: str) -> Reference:
        """What a kind of run does on a sound storage; made once."""
        if name not in self._references:
            kind = KINDS[name]
            self._lay_out(self._folder / "corpus")
            kind.prepare(self._root, self._server)
            shutil.copytree(self._root, self._start(kind))
            ended, calls = self._run(kind)
            assert ended.code == 0, ended.said
            self._references[name] = Reference(calls=calls, result=kind.result(self._root))
        return self._references[name]

    def problems(self, name: str, number: int, error: int) -> list[str]:
        """What is wrong with a run whose call of this number fails with this error; empty when all is well."""
        kind, reference = KINDS[name], self.reference(name)
        self._lay_out(self._start(kind))
        before = _kept(self._root)
        ended, calls = self._run(kind, failing=number, error=error)
        if len(calls) < number:
            return []  # processes side by side make a call more or less
        call = calls[number - 1]
        found = [*_ending(ended, call, error, self._root), *_losses(before, _kept(self._root), reference.result)]
        if inputs(self._root) != self._inputs:
            found.append("an input was changed")
        found += [f"again: {problem}" for problem in self._again(kind)]
        title = f"{name}, call {number}, {call}: {errno.errorcode[error]}"
        return [f"{title}: {line}\n{ended.said}" for line in found]

    def train_apart(self, num_ranks: int, *overrides: str) -> list[list[list[str]]]:
        """The calls of each rank, rank 0 first, in a run of one step that saves, and in one more that resumes it."""
        self._lay_out(self._folder / "corpus")
        runs = []
        for steps in (1, 2):
            module, arguments = KINDS["train on two ranks"].command(self._root)
            settings = ("model.num_loop_layers=2", f"train.steps={steps}", "ranks.hang_minutes=null", *overrides)
            self._storage.watch()
            ended = self._server.run(module, [str(num_ranks), *arguments[1:], *settings])
            calls = self._storage.stop_by_process()
            assert ended.code == 0, ended.said
            writes = re.compile(rf"open-to-write runs/{RUN}/state.*")
            runs.append(sorted(calls, key=lambda own: not any(map(writes.fullmatch, own))))
        return runs

    def many_ranks(self, num_ranks: int) -> dict[str, list[str]]:
        """The calls of each step that `tests/faults/many_ranks.py` does with a checkpoint of so many ranks."""
        self._lay_out(self._folder / "corpus")
        found = {}
        for name in STEPS:
            self._storage.watch()
            ended = self._server.run("tests.faults.many_ranks", [name, self._root / "many", str(num_ranks)])
            found[name] = self._storage.stop()
            assert ended.code == 0, ended.said
        return found

    def _again(self, kind: Kind) -> list[str]:
        """What is wrong after the same command on a sound storage. From the same files it ends in the same way."""
        files = kind.name, *folder_result(self._root).items()
        if files not in self._known_ends:
            ended, _ = self._run(kind)
            if ended.code != 0:
                self._known_ends[files] = [f"exit code {ended.code}: {ended.said}"]
            else:
                wanted, found = self._references[kind.name].result, kind.result(self._root)
                self._known_ends[files] = [
                    f"{key}: {found.get(key)} is not {wanted.get(key)}"
                    for key in sorted(wanted.keys() | found.keys())
                    if wanted.get(key) != found.get(key)
                ]
        return self._known_ends[files]

    def _lay_out(self, folder: Path) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(folder, self._root)

    def _start(self, kind: Kind) -> Path:
        return self._folder / f"start of {kind.name}"

    def _run(self, kind: Kind, failing: int = 0, error: int = 0) -> tuple[Ended, list[str]]:
        module, arguments = kind.command(self._root)
        self._storage.watch(failing=failing, error=error)
        ended = self._server.run(module, arguments)
        return ended, self._storage.stop()


@contextmanager
def open_bench() -> Iterator[Bench]:
    """A bench in memory where there is room, as every run is copied."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name).resolve()
        storage = Storage(folder, folder / "root")
        with CommandServer(folder, MODULES, storage.environment) as server:
            yield Bench(folder, storage, server)


def _kept(root: Path) -> dict[str, Any]:
    """Checkpoints and rows of the run, if there is one."""
    run_dir = root / "runs" / RUN
    files = sorted(run_dir.rglob("*.jsonl"))
    return {"checkpoints": checkpoints(run_dir / CHECKPOINTS), "rows": {path.name: rows(path) for path in files}}


def _ending(ended: Ended, call: str, error: int, root: Path) -> list[str]:
    """What is wrong with how the run with the failing call ended."""
    if ended.code is None:
        return ["it hangs"]
    if _BUG.search(ended.said):
        return ["a traceback"]
    if ended.code == 0:
        return []
    begun = re.search(r": (started|resumed) ", ended.said)
    if begun and KILLED in ended.said:
        return [KILLED]
    if ended.code != 1 and not (ended.code == 2 and error == errno.ENOENT and not begun):
        return [f"exit code {ended.code}"]
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    path = root / call.partition(" ")[2].removesuffix(" (deleted)").rstrip("/")
    names = {str(path), re.sub(r"\.(tmp|part)$", "", str(path)), str(path.parent)}
    if not 1 <= len(lines) <= 2:
        return [f"{len(lines)} lines"]
    text = " ".join(lines)
    is_named = any(re.search(rf"{re.escape(name)}(?![\w/.-]*\w)", text) for name in names)
    said = [os.strerror(error), _SAID_BY_SAFETENSORS, *(_SAID_OF_MISSING if error == errno.ENOENT else ())]
    return [] if is_named and any(words in text for words in said) else ["no line that names file and error"]


def _losses(before: dict[str, Any], after: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Which checkpoints and rows are gone that were there, and that a sound run keeps."""
    found = []
    is_saved = result.get("newest", ("",))[0] in after["checkpoints"]
    may_retire = is_saved and len(after["checkpoints"]) >= KEEP_LAST
    for name, content in before["checkpoints"].items():
        if after["checkpoints"].get(name) != content and not may_retire:
            found.append(f"{name} is gone")
    last_step = max((int(name.removeprefix("step-")) for name in before["checkpoints"]), default=0)
    for name, kept in before["rows"].items():
        now = after["rows"].get(name, [])
        # later rows are made again by the run that goes on from the checkpoint
        found += [f"a row of {name} is gone: {row}" for row in kept if row["step"] <= last_step and row not in now]
    return found
