"""One rank of a replica reads, and all of its ranks have what each would have read by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.config.layout import reads_data
from pretrain.config.run import RunConfig
from pretrain.data.stream.loader import Loader
from pretrain.parallel.groups import make_groups
from pretrain.parallel.replica_loader import ReplicaLoader
from tests.distributed.pool import RankPool
from tests.distributed.training import training_config, write_corpus

LAYOUTS = [{"tensor": 2}, {"pipeline": 2}, {"tensor": 2, "pipeline": 2}, {}]
BATCHES = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("replica"))


def settings(config: RunConfig) -> dict[str, int]:
    return {
        "seed": config.run.seed, "seq_len": config.train.seq_len, "global_batch": config.train.global_batch,
    }  # fmt: skip


def read(config: RunConfig) -> tuple[int, list[np.ndarray], list[int], np.ndarray | None, bool]:
    """The replica of this rank, its rows of some batches, the samples that they are, the state after them, and whether
    it reads."""
    groups = make_groups(config.parallel, torch.device("cpu"))
    with ReplicaLoader(config.data, groups, **settings(config)) as loader:
        rows, samples = [], list[int]()
        for _ in range(BATCHES):
            first = loader.next_sample
            samples += loader.own(range(first, first + config.train.global_batch))
            rows.append(loader.next_batch().numpy())
        state = loader.state()
        return groups.data.rank(), rows, samples, None if state is None else state.numpy(), loader.reads


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_every_rank_has_the_rows_of_its_replica(
    pool: RankPool, root: Path, parallel: dict[str, int], num_workers: int
) -> None:
    config = training_config(root, "read", parallel=parallel, data={"num_workers": num_workers})
    found = pool.run(read, config, world_size=4)
    replicas = 4 // (parallel.get("tensor", 1) * parallel.get("pipeline", 1))
    loaders = [Loader(config.data, rank=rank, num_ranks=replicas, **settings(config)) for rank in range(replicas)]
    wanted = [[loader.next_batch() for _ in range(BATCHES)] for loader in loaders]
    state = sum(loader.state() for loader in loaders)
    for loader in loaders:
        loader.close()
    for rank, (replica, rows, samples, cursors, reads) in enumerate(found):
        assert reads == reads_data(config, 4, rank)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(rows, wanted[replica], strict=True))
        assert samples == list(range(replica, BATCHES * config.train.global_batch, replicas))
        assert reads == (cursors is not None)
        assert cursors is None or np.array_equal(cursors, state)
    assert found[0][4] and sum(reads for *_, reads in found) == replicas


def read_damaged(config: RunConfig) -> str:
    groups = make_groups(config.parallel, torch.device("cpu"))
    try:
        with ReplicaLoader(config.data, groups, **settings(config)) as loader:
            while True:
                loader.next_batch()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("damage", "line"),
    [("folder", ": no manifest.jsonl; make shards there"), ("document", "; prepare the data again, or set data.on")],
)
def test_an_error_of_reading_is_that_of_all_ranks(pool: RankPool, tmp_path: Path, damage: str, line: str) -> None:
    write_corpus(tmp_path)
    data: dict[str, Any] = {}
    if damage == "folder":
        data = {"sources": [{"path": str(tmp_path / "nothing")}]}
    else:
        shard = tmp_path / "shards" / "shard-000002.tar"
        shard.write_bytes(shard.read_bytes()[:2048])
    config = training_config(tmp_path, "damaged", parallel={"tensor": 2, "pipeline": 2}, data=data)
    found = pool.run(read_damaged, config, world_size=4)
    assert line in found[0] and len(set(found)) == 1, found
