"""Only the world's group has gloo where the other groups have a backend of their own, and nothing makes more groups."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401  registers the backend

from pretrain.config.run import RunConfig
from pretrain.parallel.groups import make_groups
from pretrain.parallel.host import any_rank
from pretrain.parallel.replica_loader import ReplicaLoader
from tests.distributed.pool import RankPool
from tests.distributed.training import train, training_config, write_corpus

GROUPS = 6
"""World, tensor, data, pipeline, alone and ends."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("groups"))


def groups_like_those_of_gpus(
    config: RunConfig, store: str
) -> tuple[list[str], list[list[int]], list[int], list[bool]]:
    """The backends of all groups, the ranks of those of this rank, what it reads, and what the ranks agree on, in a
    world whose groups would move nothing on the host."""
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    dist.init_process_group("cpu:gloo,cuda:fake", store=dist.FileStore(store, size), rank=rank, world_size=size)
    groups = make_groups(config.parallel, torch.device("cuda"))
    with ReplicaLoader(
        config.data, groups, seed=0, seq_len=config.train.seq_len, global_batch=config.train.global_batch
    ) as loader:
        tokens = loader.next_batch().flatten().tolist()
    agreed = [any_rank(rank == odd) for odd in range(size + 1)]
    backends = [dist.get_backend_config(group) for group in dist.distributed_c10d._world.pg_map]
    of_rank = [groups.tensor, groups.data, groups.pipeline, groups.alone, *([groups.ends] if groups.ends else [])]
    return backends, [dist.get_process_group_ranks(group) for group in of_rank], tokens, agreed


def test_only_the_world_has_gloo_beside_another_backend(root: Path, pool: RankPool, tmp_path: Path) -> None:
    config = training_config(root, "like-gpus", parallel={"pipeline": 2, "tensor": 2})
    found = pool.run(groups_like_those_of_gpus, config, str(tmp_path / "store"), world_size=4)
    for backends, _, tokens, agreed in found:
        assert len(backends) == GROUPS and sum("gloo" in backend for backend in backends) == 1, backends
        assert tokens == found[0][2] and agreed == [True] * 4 + [False]
    wanted = [
        [[0, 1], [0], [0, 2], [0], [0, 2]],
        [[0, 1], [1], [1, 3], [1], [1, 3]],
        [[2, 3], [2], [0, 2], [2], [0, 2]],
        [[2, 3], [3], [1, 3], [3], [1, 3]],
    ]
    assert [ranks for _, ranks, _, _ in found] == wanted


def test_a_whole_run_with_hooks_makes_no_other_group(root: Path, pool: RankPool) -> None:
    hooks = ["tests.support.watching:CountsGroups", "loop_diagnostics"]
    config = training_config(root, "counted", parallel={"pipeline": 2}, train={"hooks": hooks, "steps": 4})
    assert pool.run(train, config, world_size=2) == [0, 0]
    lines = (root / "runs" / "counted" / "diagnostics.jsonl").read_text().splitlines()
    assert {json.loads(line).get("groups", GROUPS) for line in lines} == {GROUPS}
    assert any("groups" in json.loads(line) for line in lines)
