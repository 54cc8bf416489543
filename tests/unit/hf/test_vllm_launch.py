"""What is chosen when vLLM starts and what is refused there, and the caches that it makes; without vLLM."""

from typing import Any

import pytest

from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig
from pretrain.hf.vllm_plugin.launch import ServedConfig, entries_of, launched, require_held

SHAPE = {"num_prelude_layers": 1, "num_loop_layers": 2, "num_coda_layers": 1, "num_loops": 3, "hidden_size": 32}


def config(**values: Any) -> LoopedGPTConfig:
    return LoopedGPTConfig(**SHAPE | {"num_attention_heads": 4} | values)


def test_vllm_reads_how_many_heads_there_are() -> None:
    read = ServedConfig.from_dict(config().to_dict())
    assert (read.num_key_value_heads, read.head_dim, read.num_hidden_layers, read.num_loops) == (4, 8, 8, 3)


def test_every_application_of_a_layer_has_a_cache_of_its_own() -> None:
    entries = entries_of(launched(config()))
    assert entries == {"prelude": [[0]], "loop": [[1, 3, 5], [2, 4, 6]], "coda": [[7]]}


@pytest.mark.parametrize(
    ("keys", "loop", "coda"),
    [
        ({"loop": {"keys": "first"}}, [[1], [2]], [[3]]),
        ({"loop_keys": "first"}, [[1], [2]], [[3]]),
        ({"loop_keys": "every", "loop_keys_every": 2}, [[1, 3], [2, 4]], [[5]]),
        ({"loop": {"keys": "first"}, "loop_keys": "own"}, [[1, 3, 5], [2, 4, 6]], [[7]]),
    ],
)
def test_loops_that_share_keys_have_no_cache(keys: dict[str, Any], loop: list[Any], coda: list[Any]) -> None:
    chosen = launched(config(**keys))
    assert entries_of(chosen) == {"prelude": [[0]], "loop": loop, "coda": coda}
    assert sum(len(each) for part in entries_of(chosen).values() for each in part) == chosen.cached_depth()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_loops": 0}, "num_loops=0 in --hf-overrides: the loop block is applied once or more"),
        ({"num_loops": "3"}, "num_loops='3' in --hf-overrides: the loop block is applied once or more"),
        ({"loop_keys": "last"}, "loop_keys='last' in --hf-overrides: one of own, first, every"),
        ({"loop_keys": "every", "loop_keys_every": 1}, "loop_keys_every=1 in --hf-overrides: 2 or more loops"),
    ],
)
def test_a_wrong_choice_is_named(values: dict[str, Any], said: str) -> None:
    wrong = config()
    for key, value in values.items():  # as vLLM sets overrides
        setattr(wrong, key, value)
    with pytest.raises(ValueError, match=said):
        launched(wrong)


@pytest.mark.parametrize(
    ("values", "launch", "said"),
    [
        ({"loop": {"keys": "first", "keys_window": 8}}, {}, "model.loop.keys_window is not held in vLLM"),
        ({}, {"pipeline": 2}, "--pipeline-parallel-size 2: a token returns to the first layer of the loop"),
        ({}, {"is_quantised": True}, "--quantization is not held for looped models"),
        ({}, {"tensor": 3}, "--tensor-parallel-size 3 does not divide 4 heads and 4 of keys"),
        ({"num_key_value_heads": 1}, {"tensor": 2}, "--tensor-parallel-size 2 does not divide 4 heads and 1 of keys"),
        ({"qk_norm": "all"}, {"tensor": 2}, "--tensor-parallel-size 2: qk_norm=all norms all heads together"),
        (
            {"loop": {"per_loop": "lora", "lora": {"rank": 2, "alpha": 1.0}}},
            {"tensor": 2},
            "per_loop=lora changes matri",
        ),
    ],
)
def test_what_vllm_cannot_hold_is_refused(values: dict[str, Any], launch: dict[str, Any], said: str) -> None:
    plain = {"tensor": 1, "pipeline": 1, "is_quantised": False}
    with pytest.raises(ValueError, match=said):
        require_held(launched(config(**values)), **plain | launch)


def test_a_split_over_ranks_that_divides_the_heads_is_held() -> None:
    require_held(launched(config(num_key_value_heads=2)), tensor=2, pipeline=1, is_quantised=False)
