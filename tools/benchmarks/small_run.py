"""The run that benchmarks of whole steps train: an 8-layer model of width 512 on random tokens, on one rank."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.parallel.groups import start_world

NUM_THREADS = 2
NUM_MICRO_BATCHES = 2
SEPARATORS = Separators(bos_id=1, eos_id=2)
LR = 1e-3


def small_run(precision: str) -> RunConfig:
    model = {"vocab_size": 8192, "hidden_size": 512, "num_attention_heads": 8, "ffn_size": 1408, "num_loop_layers": 8}
    train = {"seq_len": 512, "micro_batch": 4, "global_batch": 4 * NUM_MICRO_BATCHES, "precision": precision}
    return RunConfig.model_validate({"model": model, "train": train})


def random_rows(config: RunConfig) -> Tensor:
    """A global batch of tokens and labels without document boundaries, int64 [global_batch, 2, seq_len]."""
    shape, generator = (config.train.global_batch, 2, config.train.seq_len), torch.Generator().manual_seed(0)
    return torch.randint(SEPARATORS.bos_id + 1, config.model.vocab_size, shape, generator=generator)


@contextmanager
def one_rank() -> Iterator[torch.device]:
    """A process group of one rank, with `NUM_THREADS` threads if there is no GPU."""
    threads = torch.get_num_threads()
    device = start_world()
    if device.type == "cpu":
        torch.set_num_threads(NUM_THREADS)
    try:
        yield device
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)
