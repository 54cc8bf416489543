"""Weights that ranks trained leave as those of one process would, and weights that came in start a run on any
layout."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from pretrain.checkpoint.names import step_name
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.hf.exporting import export_run
from tests.distributed.cases import make_engine
from tests.distributed.pool import RankPool
from tests.distributed.test_training import exact_rows, root, rows, tensors  # noqa: F401 - root is a fixture
from tests.distributed.training import train, train_aloud, training_config

PARALLEL = {"tensor": 2, "pipeline": 2}


def save_again(config: RunConfig, source: str, target: str) -> None:
    """Load a checkpoint on this layout and save it from there."""
    engine, _ = make_engine(config)
    reader = CheckpointReader(source)
    engine.load(reader, reader.meta["num_updates"])
    store = CheckpointStore(
        directory=target, rank=0, world_size=1, nonce="test", keep_last=1, keep_every=0, asynchronous=False
    )
    store.save(reader.step, engine.pieces(), reader.meta)
    store.wait()


def test_four_ranks_export_what_one_exports(root: Path, pool: RankPool, tmp_path: Path) -> None:  # noqa: F811
    config = training_config(root, "split", parallel=PARALLEL, train={"steps": 4})
    assert set(pool.run(train, config, world_size=4)) == {0}
    alone = training_config(root, "alone", train={"steps": 4})
    source = root / "runs" / "split" / "checkpoints" / step_name(4)
    pool.run(save_again, alone, str(source), str(root / "runs" / "alone" / "checkpoints"), world_size=1)
    files = []
    for name in ("split", "alone"):
        export_run(run=root / "runs" / name, out=tmp_path / name, unroll=True)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] and len(load_file(tmp_path / "split" / "model.safetensors")) > 9


def test_a_run_starts_from_the_weights_of_another(root: Path, pool: RankPool) -> None:  # noqa: F811
    pool.run(train, training_config(root, "teacher"), world_size=1)
    start = {"init_from": str(root / "runs" / "teacher")}
    for name, parallel, world_size in (("pupil-1", {}, 1), ("pupil-4", PARALLEL, 4)):
        pool.run(train, training_config(root, name, parallel=parallel, checkpoint=start), world_size=world_size)
    first, taught = rows(root, "teacher")[0]["loss"], [row["loss"] for row in rows(root, "pupil-1")]
    assert taught[0] < 0.9 * first
    before_training = [row for row in rows(root, "pupil-4", "eval/depth.jsonl") if row["step"] == 0]
    last = [row["value"] for row in rows(root, "teacher", "eval/depth.jsonl") if row["step"] == 12]
    assert [row["num_loops"] for row in before_training] == [1, 2]
    assert [row["value"] for row in before_training] == pytest.approx(last, rel=1e-5)  # as the teacher ended
    assert [row["loss"] for row in rows(root, "pupil-4")] == pytest.approx(taught, rel=1e-6)
    before = exact_rows(root, "pupil-1")
    pool.run(train, training_config(root, "pupil-1", checkpoint=start), world_size=1)  # its own checkpoint comes first
    assert exact_rows(root, "pupil-1") == before


def test_a_start_that_does_not_fit_is_named(root: Path, pool: RankPool) -> None:  # noqa: F811
    pool.run(train, training_config(root, "small", train={"steps": 4}), world_size=1)
    start = {"init_from": str(root / "runs" / "small")}
    (printed,) = pool.run(
        train_aloud, training_config(root, "wide", model={"ffn_size": 32}, checkpoint=start), world_size=1
    )
    assert "model.ffn_size=32, but the weights of" in printed and "were made with 24: set it to that" in printed
    (printed,) = pool.run(
        train_aloud, training_config(root, "none", checkpoint={"init_from": "runs/absent"}), world_size=1
    )
    assert "checkpoint.init_from=runs/absent: no good checkpoint there" in printed
    weights = tensors(root, "small")
    assert weights and not (root / "runs" / "none" / "metrics.jsonl").exists()
