"""`generate` of the exported model: the tokens of ours, with a cache those without, and no warnings."""

import sys
from typing import Any

import pytest
import torch

from pretrain.generation.generate import generate
from pretrain.generation.sampling import Generation
from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig, LoopedGPTForCausalLM
from pretrain.model.config import ModelSection
from tests.unit.hf.test_modeling_looped_gpt import ENDS, PROMPTS, exported, padded, small
from tests.unit.model.test_model import VOCAB, build, families, random_tokens

EOS = 1


@families
@pytest.mark.parametrize("num_loops", [None, 1, 3])
@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
def test_greedy_generation_equals_ours(family: ModelSection, num_loops: int | None, cache_implementation: str) -> None:
    looped = build(family, **ENDS, num_loops=2, loop={"injection": "add"})
    settings = Generation(max_new_tokens=7, vocab_size=VOCAB, end_ids=(EOS,), num_loops=num_loops)
    expected = generate(looped, PROMPTS, settings)
    rows = exported(looped).generate(
        **padded(PROMPTS), max_new_tokens=7, do_sample=False, num_loops=num_loops, eos_token_id=EOS, pad_token_id=0,
        cache_implementation=cache_implementation,
    )  # fmt: skip
    new = [row[max(map(len, PROMPTS)) :].tolist() for row in rows]
    assert [row[: row.index(EOS)] if EOS in row else row for row in new] == expected


@families
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}], ids=str)
def test_generation_with_a_cache_equals_generation_without(family: ModelSection, how: dict[str, Any]) -> None:
    model, rows = small(family), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        rows.append(
            model.generate(**padded(PROMPTS), max_new_tokens=6, num_loops=3, use_cache=use_cache, pad_token_id=0, **how)
        )
    assert torch.equal(*rows)
    assert model.config.num_loops == 2


def test_generation_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for name, module in list(sys.modules.items()):
        logger = getattr(module, "logger", None) if name.startswith("transformers") else None
        if logger is not None and hasattr(logger, "warning_once"):
            for kind in ("warning", "warning_once"):
                monkeypatch.setattr(logger, kind, lambda message, *_, **__: said.append(str(message)))
    config = LoopedGPTConfig(vocab_size=VOCAB, hidden_size=32, num_attention_heads=4, ffn_size=48, num_loops=2)
    model = LoopedGPTForCausalLM(config).eval()
    model.generate(random_tokens(), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert said == []
