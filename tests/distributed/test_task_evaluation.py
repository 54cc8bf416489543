"""Tasks scored while a run trains: what the command says of the checkpoint, training that notices nothing, a stop
between two batches."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain.checkpoint.verify import newest_good
from pretrain.config.run import RunConfig
from pretrain.eval.scorer import Scorer
from pretrain.rows.identity import parse_inputs
from tests.distributed.pool import RankPool
from tests.distributed.training import Interruption, train, train_aloud, training_config
from tests.support.corpus import make_texts, make_tokenizer, write_source
from tests.support.eval_data import write_eval_data
from tools import eval_depth

# likelihoods, texts from a file, texts of five shots
TASKS = ("lambada_openai", "svamp", "variable_assignment_code_depth0")
NUM_EXAMPLES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer, shards and evaluation data; runs go into `root/runs`."""
    folder = tmp_path_factory.mktemp("tasks")
    tokenizer = make_tokenizer(folder / "tokenizer.model")
    write_source(folder / "shards", make_texts(60), 2, tokenizer)
    (packed,) = (write_eval_data(folder / "data") / "piqa").iterdir()
    packed.unlink()
    return folder


def config_of(
    root: Path, name: str, *, tasks: tuple[str, ...] = TASKS, every: int = 3, **changes: dict[str, Any]
) -> RunConfig:
    validation = {
        "tasks": tasks,
        "tasks_every": every,
        "num_examples": NUM_EXAMPLES,
        "data_dir": str(root / "data"),
        "num_loops": [1, 3],
    }
    train = {"steps": 6, "deterministic": True, "seq_len": 32} | changes.pop("train", {})
    return training_config(root, name, validation=validation, train=train, **changes)


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    lines = (root / "runs" / name / "eval" / "depth.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["task"] != "validation"]


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    reader, _ = newest_good(root / "runs" / name / "checkpoints")
    assert reader is not None
    return {key: reader.read_whole(key) for key in reader.tensors}


@pytest.mark.parametrize("parallel", [{"pipeline": 2}, {"tensor": 2, "sequence": True}], ids=str)
def test_rows_are_those_of_the_command(
    root: Path, pool: RankPool, parallel: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE", "DISABLE_MULTIPROC"):
        monkeypatch.setenv(name, "1")  # the command sets them too, for its own process
    name = "-".join(["command", *parallel])
    assert set(pool.run(train, config_of(root, name, parallel=parallel, train={"steps": 4}), world_size=4)) == {0}
    ours = rows(root, name)
    assert [row["step"] for row in ours] == [3] * 8 + [
        4
    ] * 8  # two metrics of the first task, one of the others; two loop counts
    command = [
        "--run",
        str(root / "runs" / name),
        "--tasks",
        ",".join(TASKS),
        "--num-loops",
        "1,3",
        "--num-examples",
        str(NUM_EXAMPLES),
    ]
    out = root / f"{name}.jsonl"
    assert eval_depth.main([*command, "--offline", "--data-dir", str(root / "data"), "--out", str(out)]) == 0
    theirs = [json.loads(line) for line in out.read_text().splitlines()]
    for mine, other in zip(ours[8:], theirs, strict=True):
        found, asked = parse_inputs(mine.pop("inputs")), parse_inputs(other.pop("inputs"))
        assert asked.pop("checkpoint") and found == asked, "the command's say the checkpoint too"
        numbers = ("value", "stderr")
        assert {key: mine[key] for key in mine if key not in numbers} == {
            key: other[key] for key in other if key not in numbers
        }
        assert [mine[key] for key in numbers] == pytest.approx([other[key] for key in numbers], rel=1e-5)
    values = {(row["metric"], row["num_loops"]): row["value"] for row in theirs}
    assert values["perplexity", 1] != values["perplexity", 3]


@pytest.fixture(scope="module")
def whole(root: Path, pool: RankPool) -> str:
    """An uninterrupted run of two replicas."""
    assert pool.run(train, config_of(root, "whole"), world_size=2) == [0, 0]
    return "whole"


def test_training_does_not_notice(root: Path, pool: RankPool, whole: str) -> None:
    pool.run(train, config_of(root, "without", every=0), world_size=2)
    assert {row["step"] for row in rows(root, whole)} == {3, 6} and not rows(root, "without")
    ours, theirs = weights(root, whole), weights(root, "without")
    # the state of the generator is one
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def train_and_count(config: RunConfig, interruption: Interruption) -> tuple[int, int]:
    """Exit code, and batches that this rank began after the signal had come to a rank."""
    begun = 0

    def count(work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            nonlocal begun
            begun += flag.exists()
            return work(*args)

        return counted

    flag = Path(config.run.root, f"{config.run.name}.flag")
    score, go_on, raise_signal = Scorer._score, Scorer._continue, signal.raise_signal
    Scorer._score, Scorer._continue = count(score), count(go_on)
    signal.raise_signal = lambda number: (raise_signal(number), flag.touch())[0]
    try:
        return train(config, interruption), begun
    finally:
        Scorer._score, Scorer._continue, signal.raise_signal = score, go_on, raise_signal


@pytest.mark.parametrize(("method", "call", "kept"), [("_score", 0, 0), ("_continue", 2, 6)])
def test_a_stop_ends_the_evaluation_and_the_resumed_run_completes_it(
    root: Path, pool: RankPool, whole: str, method: str, call: int, kept: int
) -> None:
    config = config_of(root, f"stopped{method}")
    interruption = Interruption(rank=1, method=method, call=call, signal=signal.SIGTERM, part="tasks.scorer")
    (code, begun), (other_code, other_begun) = pool.run(train_and_count, config, interruption, world_size=2)
    assert code == other_code == 0
    assert begun <= 1 and other_begun <= 1  # the batch under way; the next one no more
    reader, _ = newest_good(root / "runs" / config.run.name / "checkpoints")
    assert reader is not None and reader.step == 3
    assert len(rows(root, config.run.name)) == kept
    assert pool.run(train, config, world_size=2) == [0, 0]
    keys = ("step", "task", "metric", "num_loops", "value", "stderr")
    ours, theirs = ([[row[key] for key in keys] for row in rows(root, name)] for name in (config.run.name, whole))
    assert ours == theirs


def test_what_cannot_be_scored_is_said_at_the_start(root: Path, pool: RankPool) -> None:
    (printed,) = pool.run(
        train_aloud, config_of(root, "skipped", tasks=("piqa", "asdiv", "lambada_openai")), world_size=1
    )
    assert "warning: skipped piqa: " in printed and "validation.jsonl" in printed
    assert "warning: skipped asdiv: it needs the network" in printed
    assert {row["task"] for row in rows(root, "skipped")} == {"lambada_openai"}
    (printed,) = pool.run(train_aloud, config_of(root, "unknown", tasks=("lambada_openal",)), world_size=1)
    assert "error: task lambada_openal: no such task or group, did you mean lambada_openai?" in printed
    assert not (root / "runs" / "unknown" / "metrics.jsonl").exists()


def train_without_harness(config: RunConfig) -> str:
    assert dist.get_world_size() == 1
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith(("lm_eval", "pretrain.eval."))}
    sys.modules["lm_eval"] = None  # type: ignore[assignment]
    try:
        return train_aloud(config)
    finally:
        del sys.modules["lm_eval"]
        sys.modules.update(kept)


def test_the_harness_is_asked_for_by_name(root: Path, pool: RankPool) -> None:
    (printed,) = pool.run(train_without_harness, config_of(root, "bare"), world_size=1)
    expected = (
        r"error: validation\.tasks_every=3 needs the evaluation harness, but there is no module lm_eval\S*: "
        r"bash tools/setup\.sh eval"
    )
    assert re.fullmatch(expected, printed.splitlines()[-1])


def test_a_run_without_a_task_names_none() -> None:
    with pytest.raises(
        ValueError, match=r"validation\.tasks_every=5, but data\.sources has no task: name validation\.tasks"
    ):
        RunConfig.model_validate({"validation": {"tasks_every": 5}})
