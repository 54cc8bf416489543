"""The tiny runs of the soak, their layouts, and what an uninterrupted one of each leaves: rows and steps."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.format import read_contents
from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, parse_step
from pretrain.checkpoint.verify import verify
from tests.distributed.training import training_config, write_corpus
from tests.support.ranks import start_ranks

LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "1 rank": (1, {}), "pipeline 2": (2, {"pipeline": 2}), "tensor 2": (2, {"tensor": 2}), "data 2": (2, {}),
}  # fmt: skip
"""Name -> ranks, and the section `parallel`."""
NUM_STEPS, SAVE_EVERY, KEEP_LAST, KEEP_EVERY = 40, 3, 2, 15
EVALUATE_EVERY, TASKS_EVERY = 5, 10
METRICS, EVALUATIONS = "metrics.jsonl", "eval/depth.jsonl"
_TIMES = ("tokens_per_s", "flops_per_s", "mfu_pct", "step_time_s", "memory_gib", "seconds_per_example")
"""What differs between two equal runs."""
_TOLERANCE = 1e-9
"""Of fp64 sums in another order, after `NUM_STEPS` steps."""
Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Kind:
    """What is trained on: shards of text, or a task that is also evaluated."""

    name: str
    sections: Mapping[str, Mapping[str, Any]]


_TASK = {"task": "addition", "parameters": {"num_operands": [2], "num_digits": 1}}
KINDS = (
    Kind("text", {}),
    Kind(
        "task",
        {
            "data": {"tokenizer": "symbols:0123456789+=Q. \n#", "sources": [_TASK], "validation_fraction": 0.0},
            "model": {"vocab_size": 64, "input_injection": "add"},
            "train": {"seq_len": 32},
            "validation": {"tasks_every": TASKS_EVERY, "num_examples": 4},
        },
    ),
)


def write_config(root: Path, kind: Kind) -> Path:
    """The configuration of a kind of run, as a file; its corpus lies in the same folder."""
    path = root / f"{kind.name}.yaml"
    if not path.exists():
        if not (root / "shards").exists():
            write_corpus(root)
        sections: dict[str, dict[str, Any]] = {
            "train": {"steps": NUM_STEPS, "precision": "fp64", "global_batch": 4, "micro_batch": 1},
            "validation": {"every": EVALUATE_EVERY, "num_sequences": 4},
            "checkpoint": {"every": SAVE_EVERY, "keep_last": KEEP_LAST, "keep_every": KEEP_EVERY},
        }
        for name, values in kind.sections.items():
            sections[name] = {**sections.get(name, {}), **values}
        path.write_text(json.dumps(training_config(root, "soak", **sections).model_dump(mode="json")))
    return path


def arguments(config: Path, root: Path, layout: str, *more: str) -> list[str]:
    """Of `pretrain.train`, for a run below `root`."""
    settings = [f"parallel.{key}={value}" for key, value in LAYOUTS[layout][1].items()]
    return ["--config", str(config), f"run.root={root}", *settings, *more]


def run_uninterrupted(config: Path, root: Path, layout: str) -> Path:
    """Do a run below `root` in one go, unless it is there; returns its directory."""
    if not (root / "soak").exists():
        num_ranks, _ = LAYOUTS[layout]
        for rank in start_ranks(num_ranks, "pretrain.train", arguments(config, root, layout), root / "output"):
            assert rank.wait(240) == 0, rank.output
    return root / "soak"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The rows of a run that nothing interrupted, by what makes them one."""

    steps: dict[Key, Row]
    evaluations: dict[Key, Row]
    is_exact: bool
    """A run to compare has the same layout all the time, so that its numbers are the same bits."""

    @classmethod
    def of(cls, run_dir: Path, *, is_exact: bool) -> "Reference":
        return cls(
            steps={step_key(row): row for row in read_rows(run_dir / METRICS)[0]},
            evaluations={evaluation_key(row): row for row in read_rows(run_dir / EVALUATIONS)[0]},
            is_exact=is_exact,
        )

    def problems(self, run_dir: Path, newest: int, *, is_complete: bool) -> list[str]:
        """What is wrong with the rows of a run whose newest good checkpoint is of step `newest`."""
        found: list[str] = []
        for file, key_of, wanted in (
            (METRICS, step_key, self.steps), (EVALUATIONS, evaluation_key, self.evaluations),
        ):  # fmt: skip
            rows, num_torn = read_rows(run_dir / file)
            keys = [key_of(row) for row in rows]
            found += [f"{file}: {key} twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
            # those of the newest step may be made after a stop, when the run goes on
            needed = NUM_STEPS if is_complete else newest - (file == EVALUATIONS)
            found += [
                f"{file}: {key} is lost" for key, row in wanted.items() if row["step"] <= needed and key not in keys
            ]
            if file == METRICS:
                found += [] if keys == [(number,) for number in range(1, len(keys) + 1)] else [f"{file}: steps {keys}"]
            found += [f"{file}: {num_torn} torn lines"] if num_torn and is_complete else []
            for key, row in zip(keys, rows, strict=True):
                if key not in wanted:
                    found.append(f"{file}: {key} is not a row of the run")
                elif not self._is_same(row, wanted[key]):
                    found.append(f"{file}: {row} is not {wanted[key]}")
        return found

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


def evaluation_key(row: Row) -> Key:
    return tuple(row[name] for name in ("run", "step", "task", "metric", "num_loops"))


def read_rows(path: Path) -> tuple[list[Row], int]:
    """The whole rows of a file, and the number of lines that hold none."""
    rows, num_torn = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            num_torn += 1
    return [row for row in rows if isinstance(row, dict)], num_torn


def good_checkpoints(run_dir: Path) -> dict[int, str]:
    """The good checkpoints of a run by step: the hashes of their files."""
    found: dict[int, str] = {}
    for path in list_checkpoints(run_dir / CHECKPOINTS):
        if not verify(path):
            found.setdefault(parse_step(path.name) or 0, ", ".join(file.sha256 for file in read_contents(path).files))
    return found


def lost_checkpoints(before: Mapping[int, str], after: Mapping[int, str]) -> Iterable[str]:
    """The good checkpoints that are gone, or are others now, though retention does not name them."""
    for step, content in before.items():
        newer = [other for other in after if other > step]
        if after.get(step) == content or (step not in after and step % KEEP_EVERY and len(newer) >= KEEP_LAST):
            continue
        yield f"checkpoint of step {step} {'is another one' if step in after else 'is lost'}: {sorted(after)} are left"
