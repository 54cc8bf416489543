"""HRM-Text is refused by name, and what it is said to need is what the class of transformers has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HrmTextConfig, HrmTextForCausalLM

from pretrain.hf.importing import import_model

PUBLISHED: dict[str, Any] = {  # HRM-Text-1B
    "vocab_size": 65536, "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16,
    "num_attention_heads": 12, "head_dim": 128, "H_cycles": 2, "L_cycles": 3, "max_position_embeddings": 4096,
}  # fmt: skip
SMALL = PUBLISHED | {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "head_dim": 8, "max_position_embeddings": 32, "embedding_scale": 1.0, "initializer_range": 0.5,
}  # fmt: skip
SAID = (
    "model_type=hrm_text is not supported: its loops are nested. Two blocks with weights of their own (L_module, "
    "H_module) take turns, L_cycles passes of the one to a pass of the other, H_cycles times over, on two states, "
    "each of which enters the other's passes, where model.loop has one block and one state; its attention ends in a "
    "gate (gate_proj), and with prefix_lm a prompt is read in both directions"
)


@pytest.mark.parametrize("shape", [PUBLISHED, SMALL], ids=["published", "small"])
def test_it_is_refused_with_all_that_is_missing(tmp_path: Path, shape: dict[str, Any]) -> None:
    HrmTextConfig(**shape).save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "hrm_text"
    with pytest.raises(ValueError, match="hrm_text") as caught:
        import_model(folder=tmp_path / "model", run=tmp_path / "run")
    assert str(caught.value) == f"{tmp_path / 'model' / 'config.json'}: {SAID}"
    assert not (tmp_path / "run").exists()


def test_the_published_shape_has_two_blocks_and_gates() -> None:
    with torch.device("meta"):
        model = HrmTextForCausalLM(HrmTextConfig(**PUBLISHED))
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for block in ("L_module", "H_module"):
        for layer in range(16):
            assert shapes[f"model.{block}.layers.{layer}.self_attn.gate_proj.weight"] == (1536, 1536)
    assert not [name for name in shapes if "norm" in name]  # no weights: the norms alone could be held
    layer = 5 * 1536**2 + 3 * 1536 * 4096
    assert sum(weight.numel() for weight in model.parameters()) == 2 * 16 * layer + 2 * 65536 * 1536 + 1536


@torch.no_grad()
def test_two_states_take_turns_as_is_said() -> None:
    """Neither state follows from the other: the loop in the words of the refusal is that of the class, bitwise, and one
    state for both is another model."""
    torch.manual_seed(0)
    whole = HrmTextForCausalLM(HrmTextConfig(**SMALL)).eval().double()
    model, tokens = whole.model, torch.randint(64, (2, 9))
    inputs = model.embed_tokens(tokens)
    positions = torch.arange(9)[None]
    how: dict[str, Any] = {
        "position_embeddings": model.rotary_emb(inputs, positions),
        "attention_mask": torch.ones(9, 9, dtype=torch.bool).tril()[None, None],
    }

    def run(share: bool) -> torch.Tensor:
        high, low = inputs, torch.zeros_like(inputs)
        for _ in range(2):
            for _ in range(3):
                low = model.L_module(low + high, **how)
            high = model.H_module(high + low, **how)
            low = high if share else low
        return whole.lm_head(high)

    wanted = whole(tokens, use_cache=False).logits
    torch.testing.assert_close(run(share=False), wanted, rtol=1e-9, atol=1e-9)
    assert (run(share=True) - wanted).abs().max() > 0.01 * wanted.abs().max()
