"""Hooks in whole runs: rows, resumption, faults; and the numbers of `loop_diagnostics`, by their definitions and the
same on any layout."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from pretrain.config.layout import check_layout
from pretrain.config.run import RunConfig
from pretrain.data.stream.labels import IGNORED
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.eval.validation import Validation
from pretrain.parallel.engine import Engine, StepResult
from pretrain.parallel.groups import make_groups
from pretrain.watch.hook import WatchedRun
from pretrain.watch.loop_diagnostics import LoopDiagnostics, LoopDiagnosticsParameters
from tests.distributed.cases import shake_vectors
from tests.distributed.pool import RankPool
from tests.distributed.training import Interruption, train, train_aloud, training_config, write_corpus
from tests.support.ranks import start_ranks

PARAMETERS = LoopDiagnosticsParameters(num_sequences=5, num_tokens=6, num_loops=3)
SETTINGS = {"name": "loop_diagnostics", "every": 2, "parameters": PARAMETERS.model_dump()}
LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "ring": ({"pipeline": 2}, 2),
    "tensor": ({"tensor": 2}, 2),
    "sequence": ({"tensor": 2, "sequence": True}, 2),
    "data": ({}, 2),
    "all": ({"pipeline": 2, "tensor": 2, "sequence": True}, 4),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("hooks"))


def diagnostics(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs" / name / "diagnostics.jsonl").read_text().splitlines()]


def gated(root: Path, parallel: dict[str, Any]) -> RunConfig:
    model = {"loop": {"injection": "add", "exit": "gate"}}
    train = {"precision": "fp64", "loop_loss": {"over": "expected"}}
    return training_config(root, "gated", model=model, train=train, parallel=parallel)


def make_engine(config: RunConfig) -> tuple[Engine, WatchedRun]:
    groups = make_groups(config.parallel, torch.device("cpu"))
    engine = Engine(config, groups, Tokenizer.load(config.data.tokenizer).separators)
    shake_vectors(engine.model, groups.tensor.rank(), groups.tensor.size())
    layout = check_layout(config, torch.distributed.get_world_size())
    return engine, WatchedRun(config=config, layout=layout, engine=engine, step=0)


def diagnose(config: RunConfig) -> dict[str, float]:
    engine, run = make_engine(config)
    result = StepResult(loss=0.0, regularisation=0.0, grad_norm=0.0, skipped=False)
    with torch.no_grad():
        return LoopDiagnostics(PARAMETERS, run).on_step(engine.model, result)


def by_definition(config: RunConfig) -> dict[str, float]:
    """Sequence by sequence, loop by loop, pair by pair."""
    engine, run = make_engine(config)
    validation = config.validation.model_copy(update={"num_sequences": PARAMETERS.num_sequences})
    rows = torch.cat(
        Validation(config.model_copy(update={"validation": validation}), run.layout, engine.groups).batches
    )
    rows = rows[(rows[:, 1] != IGNORED).any(1)].long()
    assert len(rows) == PARAMETERS.num_sequences
    sums: dict[str, float] = {}
    total, tokens = torch.zeros(3, dtype=torch.float64), 0
    for row, labels in rows:
        losses = _add_row(sums, engine, row, labels)
        total, tokens = total + losses, tokens + int((labels != IGNORED).sum())
    numbers = {name: value / len(rows) for name, value in sums.items()}
    means = (total / tokens).tolist()
    numbers |= {f"loss.loop{loop}": loss for loop, loss in enumerate(means, start=1)}
    return numbers | {"gain.loop2": means[0] - means[1], "gain.loop3": means[1] - means[2]}


@torch.no_grad()
def _add_row(sums: dict[str, float], engine: Engine, row: Tensor, labels: Tensor) -> Tensor:
    model = engine.model
    context = model.context(row[None])
    passes = [states.clone() for states in model.passes(row[None], 3, context)]
    left, losses = torch.ones(len(row), dtype=torch.float64), []
    for number, states in enumerate(passes):
        entropy = torch.distributions.Categorical(probs=torch.linalg.svdvals(states[_places(len(row))])).entropy()
        found = {"state_norm": states.norm(dim=-1).mean(), "effective_rank": entropy.exp()}
        others = [(i, j) for i in range(len(row)) for j in range(len(row)) if i != j]
        found["token_correlation"] = torch.stack([cosine_similarity(states[i], states[j], 0) for i, j in others]).mean()
        if number:
            before = passes[number - 1]
            found["state_change"] = ((states - before).norm(dim=-1) / before.norm(dim=-1)).mean()
            found["state_cosine"] = cosine_similarity(states, before).mean()
        stop = model.exit_log_odds(states).sigmoid() if number < 2 else torch.ones_like(left)
        found["exit"], left = (left * stop).mean(), left * (1 - stop)
        for family, value in found.items():
            name = f"{family}.loop{number + 1}"
            sums[name] = sums.get(name, 0.0) + value.item()
        logits = model.logits(model.finish(states, context, number + 1))
        losses.append(cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED))
    return torch.stack(losses)


def _places(length: int) -> list[int]:
    return [place * length // 6 for place in range(6)]


def test_diagnostics_are_what_they_are_defined_as_and_no_layout_shows_in_them(root: Path, pool: RankPool) -> None:
    (wanted,) = pool.run(by_definition, gated(root, {}), world_size=1)
    assert len(wanted) == 3 * 3 + 2 * 2 + 3 + 3 + 2
    (single,) = pool.run(diagnose, gated(root, {}), world_size=1)
    assert single == pytest.approx(wanted, rel=1e-10)
    for parallel, world_size in LAYOUTS.values():
        for found in pool.run(diagnose, gated(root, parallel), world_size=world_size):
            assert found == pytest.approx(wanted, rel=1e-10)


def test_a_resumed_run_has_every_row_once_and_names_those_that_are_missing(root: Path, pool: RankPool) -> None:
    of_both = [SETTINGS, "tests.support.watching:Meddles"]
    plain, watched = (
        training_config(root, name, parallel={"pipeline": 2}, train={"hooks": own, "deterministic": True})
        for name, own in (("plain", []), ("watched", of_both))
    )
    assert pool.run(train, plain, world_size=2) == [0, 0]
    interruption = Interruption(rank=1, method="train_step", call=6, signal=signal.SIGTERM)
    assert pool.run(train, watched, interruption, world_size=2) == [0, 0]
    path = root / "runs" / "watched" / "diagnostics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], *lines[4:6], lines[6][:40]]))  # that of step 4 is lost, the last is torn
    printed, _ = pool.run(train_aloud, watched, world_size=2)
    assert f"warning: {path}:6: an unfinished row, removed" in printed
    assert f"warning: {path}: no row of step 4: lost or removed" in printed
    rows = diagnostics(root, "watched")
    assert [row["step"] for row in rows] == [1, 2, 3, 5, 6, 8, 9, 10, 11, 12]
    assert [row["step"] for row in rows if "state_norm.loop3" in row] == [2, 6, 8, 10, 12]
    assert all((row["ranks"], row["rank"], row["lost"]) == (2, 0, None) for row in rows)
    first = json.loads((root / "runs" / "watched" / "metrics.jsonl").read_text().splitlines()[0])
    assert {(row["run_id"], row["config"]) for row in rows} == {(first["run_id"], first["config"])}
    runs = [
        [json.loads(line) for line in (root / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "watched")
    ]
    losses, configs = ([[row[key] for row in rows] for rows in runs] for key in ("loss", "config"))
    assert losses[0] == losses[1] and configs[0] == configs[1]  # training does not see that it is looked at


def test_a_hook_that_fails_late_is_switched_off_on_all_ranks_and_at_once_ends_the_run(
    root: Path, pool: RankPool
) -> None:
    short = {"steps": 5, "hooks": ["tests.support.watching:FailsLater", {**SETTINGS, "every": 5}]}
    late, _ = pool.run(train_aloud, training_config(root, "late", train=short), world_size=2)
    (line,) = [line for line in late.splitlines() if "LookupError" in line]
    where = r"warning: train.hooks: tests.support.watching:FailsLater.on_step at step 3: "
    assert line.startswith(where) and line.endswith("LookupError: nothing there; the run goes on without this hook")
    assert [row["step"] for row in diagnostics(root, "late")] == [1, 2, 5]
    at_once = training_config(root, "at-once", train={"hooks": ["tests.support.watching:FailsAtOnce"]})
    for printed in pool.run(train_aloud, at_once, world_size=2):
        assert printed.splitlines()[-1].endswith("ZeroDivisionError: division by zero")
    assert "FailsAtOnce.on_step at step 1: " in (root / "runs" / "at-once" / "state").read_text()


@pytest.mark.parametrize("failing", [0, 1])
def test_ranks_that_wait_for_one_with_an_error_end_with_its_line(root: Path, failing: int) -> None:
    hook = {"name": "tests.support.watching:FailsBeforeTalking", "parameters": {"rank": failing}}
    name = f"waiting-{failing}"
    config = training_config(root, name, train={"hooks": [hook], "steps": 5})
    (root / f"{name}.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    arguments = ["60", "--config", str(root / f"{name}.yaml")]
    ranks = start_ranks(2, "tests.support.impatient_rank", arguments, root / name)
    assert [rank.wait(60) for rank in ranks] == [1, 1], [rank.output for rank in ranks]
    said = [line for rank in ranks for line in rank.output.splitlines() if "error: " in line]
    why = f"train.hooks: {hook['name']}.on_step at step 3: "
    assert len(said) == 2 and all(f": {why}" in line and "Traceback" not in line for line in said)
    (line,) = {why + line.partition(why)[2] for line in said}  # the same on both
    assert line.endswith("LookupError: nothing to say; the other ranks wait for this one inside the hook")
    assert (root / "runs" / name / "state").read_text() == f"failed: {line}\n"
    assert [row["ranks"] for row in diagnostics(root, name)] == [2, 2]


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("tests.support.watching:Empty", "has neither on_step nor on_validation"),
        ("tests.support.watching:math", "is no subclass of pretrain.watch.hook.Hook"),
        (
            {"name": "loop_diagnostics", "parameters": {"num_token": 3}},
            "no parameter num_token, did you mean num_tokens?",
        ),
        (
            {"name": "loop_diagnostics", "parameters": {"num_tokens": 1}},
            "loop_diagnostics: num_tokens: Input should be",
        ),
        ("tests.support.watching:Talks", "word='high' is no number"),
    ],
)
def test_what_is_wrong_with_a_hook_is_one_line(root: Path, pool: RankPool, hook: Any, message: str) -> None:
    config = training_config(root, "wrong", train={"hooks": [hook], "steps": 3})
    (printed,) = pool.run(train_aloud, config, world_size=1)
    assert printed.splitlines()[-1].startswith("error: ") and message in printed.splitlines()[-1]
