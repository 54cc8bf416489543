"""The engine on a rank of a world that is not there.

torch's fake tensors have shapes and no data, its fake process group answers every collective at once, and each storage
is counted while it lives.

What fake tensors cannot do is left out, and holds no memory: drawing the first weights, moving a model to its type (it
is built in it), and the values of the result. So are the collectives of the optimizer, which work in its buffers.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel import engine
from pretrain.parallel.groups import make_groups


class RankMemory(NamedTuple):
    """Bytes on a rank."""

    states: int
    """Of weights, gradients and the optimizer, after a step."""
    peak: int
    """The most at one time."""


class Storages(TorchDispatchMode):
    """Counts the storages that operators return, until they go."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.held = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.sizes:
            self.sizes[id(storage)] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._drop, id(storage))

    def _drop(self, key: int) -> None:
        self.held -= self.sizes.pop(key)


def rank_memory(config: RunConfig, world_size: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> RankMemory:
    """What a rank of such a world holds while it is built and trains."""
    monkeypatch.setattr(engine, "initialise", lambda *_: None)
    monkeypatch.setattr(LoopedGPT, "to", lambda model, *_: model)
    monkeypatch.setattr(engine.Engine, "_sum", lambda _, parts, __: [1.0] * len(parts))
    for name in ("finish_grad_sync", "start_param_sync", "finish_param_sync"):
        monkeypatch.setattr(_ParamAndGradBucketGroup, name, lambda *_, **__: None)
    with _world(world_size, rank), _default_type(DTYPES[config.train.precision]):
        groups, storages = make_groups(config.parallel, torch.device("cpu")), Storages()
        with FakeTensorMode(allow_non_fake_inputs=True), storages:
            built = engine.Engine(config, groups, Separators(bos_id=1, eos_id=2))
            for state in built.optimizer.inner.state.values() if config.optimizer.name == "adafactor" else ():
                state["step"] = np.float64(0)  # whose value it reads, and fake tensors have none
            num_rows = config.train.global_batch // groups.data.size()
            rows = torch.zeros(num_rows, 2, config.train.seq_len, dtype=torch.int64)
            for _ in range(2):  # one that updates every weight itself keeps a copy of the gradients from then on
                built.train_step(rows, config.model.num_loops, lr=1e-3)
                if built.optimizer.shards:
                    break
            states = storages.held
        return RankMemory(states, storages.peak)


@contextmanager
def _world(world_size: int, rank: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
