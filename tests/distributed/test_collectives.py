"""What a step sends: data-parallel traffic does not depend on the loop count, and no weight or gradient crosses between
stages."""

from collections import Counter

import pytest

from pretrain.config.run import RunConfig
from tests.distributed.cases import VOCAB_SIZE, tiny_config, world_size
from tests.distributed.pool import RankPool
from tests.distributed.traffic import Message, count_traffic

LOOP_COUNTS = [1, 2, 5]
POINT_TO_POINT = ("send", "recv")


def _of_group(messages: Counter[Message], *groups: str) -> Counter[Message]:
    kept = {
        message: times
        for message, times in messages.items()
        if message.group in groups and message.operation not in POINT_TO_POINT
    }
    return Counter(kept)


def _count(config: RunConfig, pool: RankPool, data: int = 1) -> list[list[Counter[Message]]]:
    return pool.run(count_traffic, config, 4 * data, LOOP_COUNTS, world_size=world_size(config, data))


@pytest.mark.parametrize("layout", [{"pipeline": 2}, {"tensor": 2}], ids=str)
@pytest.mark.parametrize(
    ("precision", "optimizer", "operations"),
    [
        ("fp32", "adamw", {"reduce_scatter_tensor_coalesced": 1, "allgather_into_tensor_coalesced": 1}),
        ("bf16", "adamw", {"reduce_scatter_tensor_coalesced": 1, "allgather_into_tensor_coalesced": 1}),
        ("fp32", "adafactor", {"allreduce_coalesced": 1}),
    ],
)
def test_data_parallel_traffic_does_not_depend_on_loops(
    pool: RankPool, layout: dict, precision: str, optimizer: str, operations: dict[str, int]
) -> None:
    """One reduction of gradients, one gathering of weights if the optimizer is sharded; the same bytes at any L."""
    config = tiny_config(**layout, train={"precision": precision}, optimizer={"name": optimizer})
    for of_rank in _count(config, pool, data=2):
        first, *others = [_of_group(messages, "data") for messages in of_rank]
        assert all(other == first for other in others)
        times: Counter[str] = Counter()
        for message, number in first.items():
            times[message.operation] += number
        assert times == operations


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pipeline", [2, 4])
def test_between_stages_only_states_travel(pool: RankPool, family: str, pipeline: int) -> None:
    """A tied head adds one sum of the embedding's gradient over first and last stage; there is nothing else but
    messages of states."""
    config = tiny_config(family, pipeline=pipeline, train={"precision": "fp32"})
    tied = Message(operation="allreduce", group="ends", num_bytes=4 * VOCAB_SIZE * config.model.hidden_size)
    micro_batches = 4
    state_bytes = 4 * config.train.seq_len * config.model.hidden_size
    for rank, of_rank in enumerate(_count(config, pool)):
        holds_tied = config.model.tied_head and rank in (0, pipeline - 1)
        for num_loops, messages in zip(LOOP_COUNTS, of_rank, strict=True):
            assert _of_group(messages, "pipeline", "ends") == Counter({tied: 1} if holds_tied else {})
            sends = [message for message in messages if message.operation == "send"]
            assert {message.num_bytes for message in sends} == {state_bytes}
            crossings = (num_loops if rank < pipeline - 1 else num_loops - 1) + (num_loops if rank else num_loops - 1)
            assert sum(messages[message] for message in sends) == crossings * micro_batches


def test_one_agreement_a_step(pool: RankPool) -> None:
    """Loss, gradient norm, finiteness and stop codes travel in one sum over all ranks; the count of tokens in one
    before it."""
    config = tiny_config(tensor=2, train={"precision": "fp32"})
    for of_rank in _count(config, pool, data=2):
        for messages in of_rank:
            assert sum(_of_group(messages, "world").values()) == 2
