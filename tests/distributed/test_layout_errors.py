"""What does not fit is refused before any process group is made, in a line that names the keys and their values."""

from typing import Any

import pytest
import torch.distributed as dist
from pydantic import ValidationError

from pretrain.config.layout import check_layout
from pretrain.config.run import RunConfig

GOOD: dict[str, dict[str, Any]] = {
    "model": {
        "vocab_size": 64, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "ffn_size": 64,
        "num_loop_layers": 6,
    },
    "train": {"global_batch": 12, "micro_batch": 2},
}  # fmt: skip


def _with(changes: dict[str, Any]) -> RunConfig:
    sections = {name: dict(values) for name, values in GOOD.items()}
    for path, value in changes.items():
        section, key = path.split(".", 1)
        sections.setdefault(section, {})[key] = value
    return RunConfig.model_validate(sections)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel.tensor": 4}, "model.num_attention_heads=6 is not divisible by parallel.tensor=4"),
        ({"parallel.tensor": 2}, "model.num_key_value_heads=3 is not divisible by parallel.tensor=2"),
        ({"parallel.tensor": 3}, "model.vocab_size=64 is not divisible by parallel.tensor=3"),
        ({"parallel.tensor": 3, "model.vocab_size": 66}, "model.ffn_size=64 is not divisible by parallel.tensor=3"),
        ({"parallel.pipeline": 4}, "model.num_loop_layers=6 is not divisible by parallel.pipeline=4"),
        (
            {"parallel.pipeline": 2, "model.loop_regulariser": {"weight": 1.0, "block_size": 3}},
            "model.loop_regulariser.block_size=3 is not divisible by parallel.pipeline=2",
        ),
        (
            {"model.loop_regulariser": {"weight": 1.0, "block_size": 6}},
            "model.loop_regulariser.weight pulls blocks together, but model.num_loop_layers=6 is one block of "
            "block_size=6",
        ),
        (
            {"model.loop_regulariser": {"groups": ["gate", "gate"]}},
            "model.loop_regulariser.groups names gate twice",
        ),
        (
            {"data.sources": [{"path": "shards"}], "data.validation_fraction": 0},
            "validation.every=200 scores documents that are held out, and data.validation_fraction=0 holds out none of "
            "shards: raise it or set validation.every=0",
        ),
        (
            {"checkpoint.every": 500, "checkpoint.keep_every": 750},
            "checkpoint.keep_every=750 is not divisible by checkpoint.every=500",
        ),
        (
            {"parallel.sequence": True},
            "parallel.sequence splits tokens over tensor-parallel ranks: it needs parallel.tensor > 1",
        ),
        (
            {
                "parallel.tensor": 2, "parallel.sequence": True, "model.num_key_value_heads": 6, "train.seq_len": 5,
                "train.micro_batch": 1,
            },
            "train.micro_batch · train.seq_len=5 is not divisible by parallel.tensor=2",
        ),
        ({"train.micro_batch": 5}, "train.global_batch=12 is not divisible by train.micro_batch=5"),
        (
            {"parallel.pipeline": 3, "train.global_batch": 4},
            "train.global_batch / train.micro_batch = 2 micro-batches are fewer than parallel.pipeline=3: "
            "the ring needs at least one micro-batch per stage",
        ),
    ],
)  # fmt: skip
def test_what_no_number_of_ranks_can_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _with(changes)
    (detail,) = caught.value.errors()
    assert detail["msg"] == f"Value error, {message}"


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        (
            {"parallel.pipeline": 2},
            3,
            "world size=3 is not divisible by parallel.tensor · parallel.pipeline=2: start 2 ranks or a multiple "
            "(python -m pretrain.launch --ranks 2 ...), or lower parallel.tensor · parallel.pipeline",
        ),
        (
            {"parallel.pipeline": 2},
            1,
            "world size=1 is not divisible by parallel.tensor · parallel.pipeline=2: start 2 ranks or a multiple "
            "(python -m pretrain.launch --ranks 2 ...), or lower parallel.tensor · parallel.pipeline",
        ),
        (
            {},
            4,
            "train.global_batch=12 is not divisible by train.micro_batch · data-parallel size=8: "
            "lower train.micro_batch to 1",
        ),
        (
            {},
            8,
            "train.global_batch=12 cannot be shared by 8 replicas: parallel.pipeline=2 train.micro_batch=1 makes "
            "fewer that can, or change train.global_batch",
        ),
        (
            {"data.num_streams": 5},
            24,
            "train.global_batch=12 is not divisible by train.micro_batch · data-parallel size=48: 24 replicas cannot "
            "share it: parallel.tensor · parallel.pipeline 2 times as large makes 12, or change train.global_batch",
        ),
        ({"data.num_streams": 4}, 3, "data.num_streams=4 is not divisible by data-parallel size=3"),
        (
            {"parallel.pipeline": 3, "data.num_streams": 12},
            9,
            "train.global_batch / (train.micro_batch · data-parallel size 3) = 2 micro-batches are fewer than "
            "parallel.pipeline=3: raise train.global_batch or lower train.micro_batch",
        ),
    ],
)
def test_what_this_number_of_ranks_cannot_run(changes: dict[str, Any], world_size: int, message: str) -> None:
    config = _with(changes)
    with pytest.raises(ValueError) as caught:
        check_layout(config, world_size)
    assert str(caught.value) == message
    assert not dist.is_initialized()


def test_what_fits_is_laid_out() -> None:
    layout = check_layout(_with({"parallel.pipeline": 3}), 6)
    assert (layout.world_size, layout.data_parallel, layout.micro_batches) == (6, 2, 3)
