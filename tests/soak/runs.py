"""The tiny runs of the soak and their layouts, and what an uninterrupted one of each leaves: rows and steps."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finetune.config import FinetuneConfig
from pretrain.checkpoint.format import read_contents
from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, parse_step
from pretrain.checkpoint.verify import verify
from tests.distributed.training import training_config, write_corpus
from tests.support.ranks import start_ranks

RUN, KEEP_LAST, METRICS = "soak", 2, "metrics.jsonl"
_TIMES = (
    "tokens_per_s", "flops_per_s", "mfu_pct", "step_time_s", "eta_s", "memory_gib", "seconds_per_example",
    "examples_per_s", "run_id", "stderr", "work_s", "work_worst_s", "slowest",
)  # fmt: skip
"""What differs between two equal runs; the standard error of a loss is over micro-batches, so it knows the layout."""
_TOLERANCE = 1e-9
"""Of fp64 sums in another order, at the end of a run."""
Row = dict[str, Any]
Key = tuple[Any, ...]
Sections = dict[str, dict[str, Any]]


class Layout(NamedTuple):
    """How a run lies on ranks."""

    num_ranks: int
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is trained."""

    name: str
    sections: Callable[[Path], Sections]
    """The configuration, given the folder of the corpus."""
    num_steps: int = 40
    keep_every: int = 15
    """Checkpoints at its multiples stay; 0: none does."""
    module: str = "pretrain.train"
    results: str = "eval/depth.jsonl"
    result_key: tuple[str, ...] = ("run", "step", "task", "metric", "num_loops")
    """Fields of an evaluation row of which no two have the same."""
    layouts: Mapping[str, Layout]
    may_change: bool = True
    """Whether runs on other layouts are compared with each other: in fp64 alone."""

    def key(self, row: Row) -> Key:
        return tuple(row[name] for name in self.result_key)


def _pretraining(root: Path, **changes: dict[str, Any]) -> Sections:
    """A run that saves, is validated and scored often, and seldom at the same step."""
    sections: Sections = {
        "train": {"steps": 40, "precision": "fp64", "global_batch": 4, "micro_batch": 1},
        "validation": {"every": 5, "num_sequences": 4},
        "checkpoint": {"every": 3, "keep_last": KEEP_LAST, "keep_every": 15},
    }
    for name, values in changes.items():
        sections[name] = {**sections.get(name, {}), **values}
    return training_config(root, RUN, **sections).model_dump(mode="json")


def _task(root: Path) -> Sections:
    addition = {"task": "addition", "parameters": {"num_operands": [2], "num_digits": 1}}
    return _pretraining(
        root,
        data={"tokenizer": "symbols:0123456789+=Q. \n#", "sources": [addition], "validation_fraction": 0.0},
        model={"vocab_size": 64, "loop": {"injection": "add"}},
        train={"seq_len": 32},
        validation={"tasks_every": 10, "num_examples": 4},
    )


def _finetuning(root: Path) -> Sections:
    """Two stages, and best weights of the second."""
    task = {"task": "prosqa_symbolic", "parameters": {"num_nodes": 8, "min_hops": 2, "max_hops": 3}}
    sections = {
        "run": {"name": RUN, "root": str(root)},
        "model": {"vocab_size": 72, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 24},
        "data": {
            "tokenizer": "symbols:ABCDEFGHIJKLMNOPQabcdefghijklmnopqrstuvwxyz0123456789YZ,?=",
            "train": {**task, "num_examples": 16}, "validation": {**task, "num_examples": 4},
            "test": {**task, "num_examples": 4},
        },
        "train": {"epochs": 8, "effective_batch": 4, "micro_batch": 2, "seq_len": 128},
        "curriculum": {"num_stages": 1, "first_stage_epochs": 2, "epochs_per_stage": 6},
        "validation": {"max_new_tokens": 4},
        "checkpoint": {"every": 3, "keep_last": KEEP_LAST},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip
    return FinetuneConfig.model_validate(sections).model_dump(mode="json")


_LAYOUTS = {
    "1 rank": Layout(1), "pipeline 2": Layout(2, ("parallel.pipeline=2",)),
    "tensor 2": Layout(2, ("parallel.tensor=2",)), "data 2": Layout(2),
}  # fmt: skip
_ZERO = {"1 rank": Layout(1), **{f"ZeRO {stage} on 2": Layout(2, (f"engine.zero_stage={stage}",)) for stage in (1, 3)}}
TEXT = Kind(name="text", sections=_pretraining, layouts=_LAYOUTS)
KINDS = (
    TEXT,
    Kind(name="task", sections=_task, layouts=_LAYOUTS),
    Kind(
        name="thoughts", sections=_finetuning, num_steps=32, keep_every=0, module="finetune.coconut",
        results="eval/coconut.jsonl", result_key=("run", "step", "split", "num_thoughts", "num_loops"), layouts=_ZERO,
        may_change=False,
    ),
)  # fmt: skip


def write_config(root: Path, kind: Kind) -> Path:
    """The configuration of a kind of run, as a file; its corpus lies in the same folder."""
    path = root / f"{kind.name}.yaml"
    if not (root / "shards").exists():
        write_corpus(root)
    path.write_text(json.dumps(kind.sections(root)))
    return path


def arguments(config: Path, root: Path, layout: Layout, *more: str) -> list[str]:
    """Of the command, for a run below `root`."""
    return ["--config", str(config), f"run.root={root}", *layout.settings, *more]


def run_uninterrupted(kind: Kind, config: Path, root: Path, layout: Layout) -> Path:
    """Do a run below `root` in one go, unless it is there; returns its directory."""
    if not (root / RUN).exists():
        for rank in start_ranks(layout.num_ranks, kind.module, arguments(config, root, layout), root / "output"):
            assert rank.wait(240) == 0, rank.output
    return root / RUN


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The rows of a run that nothing interrupted, by what makes them one."""

    steps: dict[Key, Row]
    evaluations: dict[Key, Row]
    is_exact: bool
    """A run to compare has the same layout all the time, so that its numbers are the same bits."""

    kind: Kind

    @classmethod
    def of(cls, run_dir: Path, kind: Kind, *, is_exact: bool) -> "Reference":
        return cls(
            steps={step_key(row): row for row in read_rows(run_dir / METRICS)[0]},
            evaluations={kind.key(row): row for row in read_rows(run_dir / kind.results)[0]},
            is_exact=is_exact,
            kind=kind,
        )

    def problems(self, run_dir: Path, newest: int, *, is_complete: bool) -> list[str]:
        """What is wrong with the rows of a run whose newest good checkpoint is of step `newest`."""
        found: list[str] = []
        for file, key_of, wanted in (
            (METRICS, step_key, self.steps), (self.kind.results, self.kind.key, self.evaluations),
        ):  # fmt: skip
            rows, num_torn = read_rows(run_dir / file)
            keys = [key_of(row) for row in rows]
            found += [f"{file}: {key} twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
            needed = wanted if is_complete else self._needed(wanted, newest, is_metrics=file == METRICS)
            found += [f"{file}: {key} is lost" for key in needed if key not in keys]
            if file == METRICS:
                found += [] if keys == [(number,) for number in range(1, len(keys) + 1)] else [f"{file}: steps {keys}"]
            found += [f"{file}: {num_torn} torn lines"] if num_torn and is_complete else []
            for key, row in zip(keys, rows, strict=True):
                if key not in wanted:
                    found.append(f"{file}: {key} is not a row of the run")
                elif not self._is_same(row, wanted[key]):
                    found.append(f"{file}: {row} is not {wanted[key]}")
        return found

    def _needed(self, wanted: Mapping[Key, Row], newest: int, *, is_metrics: bool) -> list[Key]:
        """Keys of the rows that must be there before the run is complete. Evaluations of the newest step may be made
        after a stop, when the run goes on; the test is the last thing of all, whatever its step."""
        last = newest - (not is_metrics)
        return [key for key, row in wanted.items() if row["step"] <= last and row.get("split") != "test"]

    def _is_same(self, row: Row, wanted: Row) -> bool:
        if row.keys() != wanted.keys():
            return False
        for name, value in row.items():
            then = wanted[name]
            if name in _TIMES or value == then:
                continue
            if self.is_exact or not isinstance(value, float) or not isinstance(then, float):
                return False
            if not math.isclose(value, then, rel_tol=_TOLERANCE, abs_tol=1e-12):
                return False
        return True


def step_key(row: Row) -> Key:
    return (row["step"],)


def read_rows(path: Path) -> tuple[list[Row], int]:
    """The rows of a file, and the number of lines that hold none: objects without a step among them."""
    rows, num_torn = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            num_torn += 1
    return rows, num_torn


def good_checkpoints(run_dir: Path) -> dict[int, str]:
    """The good checkpoints of a run by step: the hashes of their files."""
    found: dict[int, str] = {}
    for path in list_checkpoints(run_dir / CHECKPOINTS):
        if not verify(path):
            found.setdefault(parse_step(path.name) or 0, ", ".join(file.sha256 for file in read_contents(path).files))
    return found


def lost_checkpoints(before: Mapping[int, str], after: Mapping[int, str], keep_every: int) -> Iterable[str]:
    """The good checkpoints that are gone, or are others now, though retention does not name them."""
    for step, content in before.items():
        newer = [other for other in after if other > step]
        may_go = len(newer) >= KEEP_LAST and not (keep_every and step % keep_every == 0)
        if after.get(step) == content or (step not in after and may_go):
            continue
        yield f"checkpoint of step {step} {'is another one' if step in after else 'is lost'}: {sorted(after)} are left"
