"""What makes results comparable: one curve is one model shape with one thing varying, everything else equal.

A curve of looped models is one (prelude, k, coda) with L varying, k⊗1 included; one of baselines is one (prelude, coda)
with k varying. All points of a curve agree in every setting that is not the shape and not the seed, in the data, in the
tokens seen (to two digits), and in the questions of each task. Rows from before they said all this agree with each
other alone, where family and parameters of the loop block do.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, NamedTuple

from pretrain.config.saved_model import Family
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.identity import digest, parse_inputs

SHAPE = frozenset(
    {"model.num_prelude_layers", "model.num_loop_layers", "model.num_loops", "model.num_coda_layers"}
)  # fmt: skip
"""Settings that say where on a curve, or on which, a model is."""
QUESTIONS = ("N", "examples", "shots", "bos", "harness")
"""What was asked: the number of examples, and of a row's `inputs`."""
FORM = ("shots", "bos", "harness")
"""How it was asked; more of the same questions change a value by chance alone."""
VALIDATION = "validation"
"""The task that is a run's own held-out text, which the seed draws."""
MOST_NAMED = 3
"""Differing settings in the name of a curve; more are counted."""


class CurveKey(NamedTuple):
    """What the points of a curve agree in."""

    family: Family
    shape: tuple[int | None, ...]
    """Prelude, k, coda; k is None of baselines; of old rows (-1, parameters of the loop block, -1)."""
    others: str | None
    """Hash of all other settings; None of old rows."""
    data: str | None
    tokens: float | None
    """Tokens seen, to two digits."""
    questions: str
    """What was asked, of tasks of which the rows at hand hold several versions."""

    @property
    def all_but_shape(self) -> tuple[object, ...]:
        """What two curves must agree in to be held against each other."""
        return self.others, self.data, self.tokens, self.questions


class Comparable:
    """The keys of the rows at hand."""

    def __init__(self, rows: Iterable[EvaluationRow], questions: Sequence[str] = QUESTIONS) -> None:
        """Args: rows, and what of `questions_of` must agree."""
        self._questions = questions
        asked: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            asked[row.task].add(questions_of(row, questions))
        self.several = {task for task, found in asked.items() if len(found) > 1}
        """Tasks that were asked in several versions."""
        self._hashes: dict[tuple[str | None, ...], str | None] = {}

    def key(self, row: EvaluationRow) -> CurveKey:
        """The curve that a row belongs to, by its own family."""
        is_looped = row.family == "looped"
        if row.num_loop_layers is None:
            shape = (-1, row.num_loop_params if is_looped else None, -1)
        else:
            shape = (row.num_prelude_layers, row.num_loop_layers if is_looped else None, row.num_coda_layers)
        tokens = None if row.tokens_seen is None else float(f"{row.tokens_seen:.2g}")
        questions = f"{row.task} {questions_of(row, self._questions)}" if row.task in self.several else ""
        return CurveKey(row.family, shape, self._others(row), row.data, tokens, questions)

    def looped_key(self, row: EvaluationRow) -> CurveKey | None:
        """The curve of k⊗L that a baseline k⊗1 is the first point of; None where its k is unknown."""
        k = row.num_loop_params if row.num_loop_layers is None else row.num_loop_layers
        if k is None:
            return None
        key = self.key(row)
        return key._replace(family="looped", shape=(key.shape[0], k, key.shape[2]))

    def _others(self, row: EvaluationRow) -> str | None:
        if row.settings is None:
            return None
        if row.variant not in self._hashes or row.variant is None:
            self._hashes[row.variant] = digest({k: v for k, v in row.settings.items() if k not in SHAPE})  # type: ignore[index]
        return self._hashes[row.variant]  # type: ignore[index]


def questions_of(row: EvaluationRow, names: Sequence[str] = QUESTIONS) -> str:
    """What was asked, as a text; of the run's own validation text nothing, as each seed draws another."""
    return "" if row.task == VALIDATION else _asked(row.inputs, row.num_examples, tuple(names))


@lru_cache
def _asked(inputs: str | None, num_examples: int, names: tuple[str, ...]) -> str:
    found = parse_inputs(inputs) | {"N": str(num_examples)}
    return " ".join(f"{name}={found[name]}" for name in names if name in found)


class CurveName(NamedTuple):
    """A curve among those of its group."""

    shape: str
    run: str
    """Where it is of a single one, else empty."""
    differs: str
    """What sets it apart from the others; empty if nothing does."""

    def __str__(self) -> str:
        known = ", ".join(filter(None, (self.run, self.differs)))
        return f"{self.shape} ({known})" if known else self.shape


def curve_names(
    firsts: Mapping[CurveKey, EvaluationRow], runs: Mapping[CurveKey, Sequence[str]]
) -> dict[CurveKey, CurveName]:
    """A name for each curve of a task group: its shape, and what sets it apart from the others.

    Args:
        firsts: a row of each curve.
        runs: names of the runs of each curve.
    """
    names = {key: _shape_name(key, row) for key, row in firsts.items()}
    said: dict[CurveKey, dict[str, str]] = {key: _apart(key, row) for key, row in firsts.items()}
    short = short_names({what for known in said.values() for what in known})
    found = {}
    for key, name in names.items():
        others = [other for other in names if other != key]
        differing = [what for what, value in said[key].items() if any(said[o].get(what) != value for o in others)]
        missing = {what for other in others for what in said[other]} - said[key].keys()
        # What others set is named only where this one sets nothing: its name would be all defaults.
        parts = [f"{short[what]}={said[key][what]}" for what in differing]
        if not parts:
            is_many = len(missing) > MOST_NAMED
            parts = ["defaults"] if is_many else [f"default {short[what]}" for what in sorted(missing)]
        shown = parts[:MOST_NAMED] + ([f"and {len(parts) - MOST_NAMED} more"] if len(parts) > MOST_NAMED else [])
        run = runs[key][0] if len(set(runs[key])) == 1 else ""
        found[key] = CurveName(name, run, ", ".join(shown))
    return found


def short_names(keys: AbstractSet[str]) -> dict[str, str]:
    """The last part of each key, or the whole one where two end alike."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def _shape_name(key: CurveKey, row: EvaluationRow) -> str:
    if row.num_loop_layers is None:
        return {"looped": "looped, k⊗L", "baseline": "baseline, k⊗1", "regularised": "regularised"}[key.family]
    k = "k" if key.shape[1] is None else str(key.shape[1])
    middle = f"{k}⊗{'L' if key.family == 'looped' else '1'}"
    ends = (key.shape[0], key.shape[2])
    whole = f"{ends[0]}+{middle}+{ends[1]}" if any(ends) else middle
    return whole if key.family == "looped" else f"{key.family} {whole}"


def _apart(key: CurveKey, row: EvaluationRow) -> dict[str, str]:
    """What can set a curve apart, by name."""
    found = {name: shown_value(value) for name, value in (row.settings or {}).items() if name not in SHAPE}
    if row.data is not None:
        found["data"] = row.data[:6]
    if key.tokens is not None:
        found["tokens"] = f"{key.tokens:.2g}"
    if key.questions:
        found["asked"] = key.questions
    return found


def shown_value(value: Any) -> str:
    """A setting in a table or a name: one line, and a short one."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
    return text if len(text) <= 40 else f"{text[:37]}..."
