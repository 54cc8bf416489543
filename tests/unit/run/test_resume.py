"""What may differ between a run and what it goes on from: every other key is refused, each difference is shown."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import finetune.trainer
import pretrain.trainer
from finetune.config import FinetuneConfig
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.model.config import ModelSection
from pretrain.model.loop.config import LoopSection
from pretrain.run.resume import INIT_MAY_DIFFER, Resumable, compare_models, covers

GOLDEN = Path(__file__).parents[2] / "golden"
KINDS = {
    "pretrained": (pretrain.trainer.RESUMABLE, RunConfig),
    "finetuned": (finetune.trainer.RESUMABLE, FinetuneConfig),
}
MAY_DIFFER_IN_BOTH = {"optimizer.lr", "train.micro_batch", "run.name", "checkpoint.keep_last", "logging.every"}


def saved(name: str) -> tuple[Resumable, CheckpointReader, Any]:
    """A checkpoint that says it was made with the configuration of now."""
    resumable, schema = KINDS[name]
    config = read_config(GOLDEN / f"{name}.yaml", schema)
    reader, _ = open_checkpoint(GOLDEN / name)
    reader.meta[resumable.config] = config.model_dump(mode="json")
    return resumable, reader, config


def leaves(tree: Any, key: str = "") -> Iterator[str]:
    if isinstance(tree, dict) and tree and not key.endswith("parameters"):
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}".removeprefix("."))
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{key}.{number}")
    else:
        yield key


def change(tree: Any, key: str, value: Any) -> Any:
    """A copy with another value at a key."""
    changed = copy.deepcopy(tree)
    *path, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    target = changed
    for part in path:
        target = target[part]
    target[last] = value
    return changed


@pytest.mark.parametrize("name", KINDS)
def test_every_key_is_refused_or_on_the_list_and_shown(name: str) -> None:
    resumable, reader, config = saved(name)
    assert resumable.compare(reader, config) == []
    whole, allowed = reader.meta[resumable.config], set()
    for key in leaves(whole):
        reader.meta[resumable.config] = change(whole, key, "something else")
        if covers(resumable.may_differ, key) and not covers(resumable.must_equal, key):
            (line,) = resumable.compare(reader, config)
            assert line.startswith(f"{key}: 'something else' in the checkpoint, ")
            allowed.add(key)
        else:
            with pytest.raises(ValueError, match=rf"^{key}=.* was made with 'something else': choose another run.name"):
                resumable.compare(reader, config)
    assert allowed >= MAY_DIFFER_IN_BOTH
    refused = {"run.seed", "model.rope_theta", "model.num_loops", "train.seq_len"}
    assert not allowed & (refused | {"data.validation_fraction", "data.document_mask", "optimizer.name"})


@pytest.mark.parametrize("name", KINDS)
def test_every_entry_of_the_list_is_a_key(name: str) -> None:
    resumable, _, config = saved(name)
    keys = list(leaves(config.model_dump(mode="json")))
    for entry in (*resumable.may_differ, *resumable.must_equal):
        assert any(covers((entry,), key) for key in keys), entry


def test_a_key_of_a_later_version_is_compared_with_its_default() -> None:
    resumable, reader, config = saved("pretrained")
    del reader.meta["config"]["data"]["document_mask"]
    assert resumable.compare(reader, config) == []
    masked = read_config(GOLDEN / "pretrained.yaml", RunConfig, ["data.document_mask=true"])
    with pytest.raises(ValueError, match=r"^data\.document_mask=True, but .* was made with False"):
        resumable.compare(reader, masked)


def test_another_number_of_sources_is_refused_by_key() -> None:
    resumable, reader, config = saved("pretrained")
    reader.meta["config"]["data"]["sources"] *= 2
    with pytest.raises(ValueError, match=r"^data\.sources="):
        resumable.compare(reader, config)


@pytest.mark.parametrize("field", ModelSection.model_fields)
def test_weights_are_taken_by_a_model_of_the_same_architecture_alone(field: str) -> None:
    _, reader, config = saved("pretrained")
    now = config.model.model_dump(mode="json")
    reader.meta["config"]["model"] = now
    assert compare_models(reader, config.model, 64) == []
    values = {
        "loop": LoopSection(), "norm": "layer", "norm_place": "after", "qk_norm": "head", "positions": "learned",
        "activation": "gelu", "bias": "all", "tied_head": True, "head_size": 8, "num_key_value_heads": 1,
        "loop_regulariser": config.model.loop_regulariser.model_copy(update={"block_size": 1}),
    }  # fmt: skip
    model = config.model.model_copy(update={field: values[field] if field in values else now[field] * 2})
    if covers(INIT_MAY_DIFFER, field):
        (line,) = compare_models(reader, model, 64)
        assert line.startswith(f"model.{field}")
    else:
        with pytest.raises(ValueError, match=rf"model\.{field}(\.\w+)?=.* set it to that"):
            compare_models(reader, model, 64)
