"""The transformers model against LoopedGPT and published models with copied weights, cached, padded, saved, alone."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import (
    DynamicCache,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from pretrain.hf import modeling_looped_gpt
from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig, LoopedGPTForCausalLM
from pretrain.hf.travelling import write_modeling
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loss import loss_sums
from tests.unit.model.test_model import GPT2, LLAMA, SEQ, VOCAB, build, families, random_tokens

ENDS: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1}
PROMPTS = [[5, 9, 3, 40, 2], [7], [11, 60, 8]]


def exported(looped: LoopedGPT) -> LoopedGPTForCausalLM:
    """The transformers model with the same weights under the same names."""
    config = looped.config
    fields = {name: value for name, value in config.model_dump().items() if name in LoopedGPTConfig.__annotations__}
    fields |= {"loop": config.loop.chosen() or None}
    model = LoopedGPTForCausalLM(LoopedGPTConfig(max_position_embeddings=SEQ, **fields))
    model = model.to(next(looped.parameters()).dtype)
    model.load_state_dict(looped.state_dict())
    return model.eval()


def small(family: ModelSection) -> LoopedGPTForCausalLM:
    return exported(build(family, **ENDS, num_loops=2, loop={"injection": "add"}))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def padded(prompts: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
    }


# The same model


@families
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "changes",
    [{}, {**ENDS, "loop": {"injection": "add"}}, {"num_key_value_heads": 1},
     {"num_loop_layers": 4, "loop_regulariser": {"block_size": 2}}],
    ids=["plain", "ends", "one-key-head", "regularised"],
)  # fmt: skip
def test_logits_equal_those_of_looped_gpt(
    family: ModelSection, dtype: torch.dtype, tolerance: float, changes: dict[str, Any]
) -> None:
    family = ModelSection.model_validate({**family.model_dump(), **changes})
    looped = build(family, dtype=dtype)
    model, tokens = exported(looped), random_tokens()
    for num_loops in (None,) if looped.config.num_blocks > 1 else (None, 1, 2, 3):
        expected = looped.logits(looped(tokens, num_loops))
        assert expected.std() > 0.5
        assert_close(model(tokens, num_loops=num_loops).logits.flatten(0, 1), expected, tolerance)


def test_the_configuration_gives_the_loop_count() -> None:
    model = exported(build(LLAMA, num_loops=3))
    tokens = random_tokens()
    assert torch.equal(model(tokens).logits, model(tokens, num_loops=3).logits)
    assert not torch.allclose(model(tokens).logits, model(tokens, num_loops=2).logits)
    assert model.config.num_hidden_layers == 6


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "eos_token_id": None,
}
NORM_FIRST = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
NORM_LAST = {"post_attention_layernorm": "attention_norm", "post_feedforward_layernorm": "ffn_norm"}
COMMON = {
    "model.embed_tokens": "embedding",
    "model.layers": "loop",
    "model.norm": "final_norm",
    "lm_head": "head",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "mlp": "ffn",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}


@pytest.mark.parametrize(
    ("reference_class", "reference_config", "norm_names", "fields"),
    [
        (Qwen2ForCausalLM, Qwen2Config(**SIZES, rms_norm_eps=1e-5), NORM_FIRST, {"bias": "qkv"}),
        (Qwen3ForCausalLM, Qwen3Config(**SIZES, rms_norm_eps=1e-5, head_dim=12), NORM_FIRST,
         {"qk_norm": "head", "head_size": 12}),
        (OlmoForCausalLM, OlmoConfig(**SIZES), NORM_FIRST, {"norm": "plain"}),
        (Olmo2ForCausalLM, Olmo2Config(**SIZES, rms_norm_eps=1e-5), NORM_LAST,
         {"norm_place": "after", "qk_norm": "all"}),
    ],
    ids=["qwen2", "qwen3", "olmo", "olmo2"],
)  # fmt: skip
def test_logits_equal_those_of_published_models(
    reference_class: type[PreTrainedModel], reference_config: PretrainedConfig, norm_names: dict[str, str],
    fields: dict[str, Any],
) -> None:  # fmt: skip
    torch.manual_seed(0)
    reference = reference_class(reference_config).eval()
    weights = {}
    for name, value in reference.state_dict().items():
        if value.dim() == 1:  # norms and biases, which begin at 1 and 0
            value += 0.3 * torch.randn(value.shape)  # state_dict shares memory: the reference has it too
        for theirs, ours in (COMMON | norm_names).items():
            name = name.replace(theirs, ours)
        weights[name] = value
    config = LoopedGPTConfig(
        vocab_size=VOCAB, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, ffn_size=48, num_loop_layers=3,
        **fields,
    )  # fmt: skip
    model = LoopedGPTForCausalLM(config).eval()
    model.load_state_dict(weights)
    expected = reference(random_tokens()).logits
    assert expected.std() > 0.5
    assert_close(model(random_tokens()).logits, expected, 1e-5)


# Cache and padding


@families
@pytest.mark.parametrize("num_loops", [1, 3])
def test_cached_equals_uncached(family: ModelSection, num_loops: int) -> None:
    model, tokens = small(family), random_tokens()
    whole = model(tokens, num_loops=num_loops, use_cache=False)
    assert whole.past_key_values is None
    config = copy.deepcopy(model.config)
    config.num_loops = num_loops
    for cache in (None, DynamicCache(), DynamicCache(config=config), StaticCache(config=config, max_cache_len=SEQ + 3)):
        parts = []
        for first, last in ((0, 5), (5, 6), (6, 9), (9, SEQ)):
            output = model(tokens[:, first:last], past_key_values=cache, num_loops=num_loops, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
        assert cache is not None and cache.get_seq_length() == SEQ
        assert_close(torch.cat(parts, dim=1), whole.logits)


@families
def test_padded_rows_equal_rows_alone(family: ModelSection) -> None:
    model, batch = small(family), padded(PROMPTS)
    whole = model(**batch, use_cache=True)
    assert whole.logits.isfinite().all()
    mask = modeling_looped_gpt.visibility(batch["attention_mask"], None, 0, model.embedding(batch["input_ids"]))
    assert mask is not None and mask.any(-1).all()  # a row of nothing is NaN in some versions and kernels of torch
    new = torch.tensor([[4], [5], [6]])
    mask = F.pad(batch["attention_mask"], (0, 1), value=1)
    following = model(new, attention_mask=mask, past_key_values=whole.past_key_values).logits
    for row, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([[*prompt, int(new[row])]])).logits[0]
        assert_close(whole.logits[row, -len(prompt) :], alone[:-1])
        assert_close(following[row], alone[-1:])


@families
def test_a_four_dimensional_mask_separates_documents(family: ModelSection) -> None:
    model, tokens = small(family), random_tokens(batch=1)
    segments, positions = torch.tensor([0] * 5 + [1] * 7), torch.tensor([[*range(5), *range(7)]])
    mask = ((segments[:, None] == segments) & torch.ones(SEQ, SEQ, dtype=torch.bool).tril())[None, None]
    alone = torch.cat([model(part).logits for part in tokens.split([5, 7], 1)], dim=1)
    assert_close(model(tokens, attention_mask=mask, position_ids=positions).logits, alone)
    added = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)
    assert_close(model(tokens, attention_mask=added, position_ids=positions).logits, alone)


@torch.no_grad()
def test_it_compiles_whole() -> None:
    model, tokens = exported(build(LLAMA, num_loops=2)), random_tokens()
    whole = model(tokens).logits
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    for num_tokens in (SEQ, SEQ - 1):  # the second one makes the size symbolic
        assert_close(compiled(tokens[:, :num_tokens], use_cache=False).logits, whole[:, :num_tokens])
    cache = StaticCache(config=model.config, max_cache_len=SEQ + 3)
    model(tokens[:, : SEQ - 2], past_key_values=cache)
    for position in (SEQ - 2, SEQ - 1):  # as `generate` steps
        mask = (torch.arange(SEQ + 3) <= position)[None, None, None]
        positions = torch.tensor([[position]])
        step = compiled(tokens[:, position, None], attention_mask=mask, position_ids=positions, past_key_values=cache)
        assert_close(step.logits, whole[:, position, None])


# Training


@families
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_labels_give_the_mean_loss_and_recomputation_keeps_its_gradients(family: ModelSection) -> None:
    looped = build(family, num_loops=2, **ENDS)
    model, tokens = exported(looped).train(), random_tokens()
    labels = tokens.clone()
    labels[0, :5] = -100
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    loss = loss_sums(looped, looped(tokens), shifted)[0] / (shifted >= 0).sum()
    loss.backward()
    expected = {name: parameter.grad for name, parameter in looped.named_parameters()}
    scale = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for recomputes in (False, True):
        if recomputes:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        output = model(tokens, labels=labels)
        assert output.past_key_values is None
        assert_close(output.loss.double(), loss, 1e-6)  # transformers rounds logits to fp32 for the loss
        output.loss.backward()
        for name, gradient in expected.items():
            assert (model.get_parameter(name).grad - gradient).norm() <= 1e-6 * scale, name


def test_initial_weights_are_those_of_training() -> None:
    shape = {"vocab_size": 512, "hidden_size": 64, "ffn_size": 256, "num_loop_layers": 2, "num_loops": 4}
    config = LoopedGPTConfig(**shape, norm="layer", bias="all")
    for name, parameter in LoopedGPTForCausalLM(config).named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter) * name.endswith("norm.weight")), name
        else:
            is_residual = name.endswith(("attention.output.weight", "ffn.down.weight"))
            assert math.isclose(parameter.std().item(), 0.02 / (4 if is_residual else 1), rel_tol=0.05), name


def test_hidden_states_are_those_of_every_application() -> None:
    model, tokens = small(LLAMA), random_tokens()
    output = model(tokens, num_loops=3, output_hidden_states=True)
    assert len(output.hidden_states) == 1 + 3 * 2 + 1 + 1
    assert torch.equal(model.head(output.hidden_states[-1]), output.logits)
    assert torch.equal(output.hidden_states[0], model.embedding(tokens))
    embedded = model(inputs_embeds=output.hidden_states[0], num_loops=3, logits_to_keep=2)
    assert_close(embedded.logits, output.logits[:, -2:])
    assert embedded.hidden_states is None


# Saved


@families
def test_saving_and_loading_is_bitwise(family: ModelSection, tmp_path: Path) -> None:
    model = exported(build(family, dtype=torch.float32, num_loops=2, **ENDS))
    model.save_pretrained(tmp_path)
    loaded, report = LoopedGPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert (loaded.head.weight is loaded.embedding.weight) == family.tied_head
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("head.weight" in file.keys()) != family.tied_head  # noqa: SIM118 - it is no mapping
    narrow = LoopedGPTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    logits, expected = narrow(random_tokens()).logits, model(random_tokens()).logits
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).norm() < 0.1 * expected.norm()


ALONE = """
import sys
sys.modules["pretrain"] = None  # any import of it now fails
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokens = torch.tensor([[5, 9, 3, 40, 2]])
print(model.generate(tokens, max_new_tokens=6, do_sample=False, num_loops=6).tolist())
model.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
assert torch.equal(model(tokens).logits, again(tokens).logits)
"""


def test_the_files_work_alone(tmp_path: Path) -> None:
    model = exported(build(LLAMA, dtype=torch.float32, num_loops=2, **ENDS))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    write_modeling(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "LoopedGPTConfig", "AutoModelForCausalLM": "LoopedGPTForCausalLM"}
    config["auto_map"] = {auto: f"modeling_looped_gpt.{name}" for auto, name in names.items()}
    (folder / "config.json").write_text(json.dumps(config))
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "again")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=6, do_sample=False, num_loops=6)
    # DeepSpeed, which transformers loads where it is installed, writes below
    first_line, *_ = result.stdout.splitlines()
    assert json.loads(first_line) == expected.tolist()


# Errors


def test_mistakes_are_named() -> None:
    model, tokens = small(LLAMA), random_tokens()
    cache = model(tokens, num_loops=3).past_key_values
    for num_loops in (1, 4):
        with pytest.raises(ValueError, match=r"has 8 entries, but num_loops=\d fills"):
            model(tokens[:, :1], past_key_values=cache, num_loops=num_loops)
    with pytest.raises(ValueError, match="has 6 entries, but num_loops=3 fills 8"):
        model(tokens, past_key_values=DynamicCache(config=model.config), num_loops=3)
    with pytest.raises(ValueError, match="num_loops=0"):
        model(tokens, num_loops=0)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="1 columns for 12 cached and 1 new"):
        model(tokens[:, :1], attention_mask=torch.ones(3, 1), past_key_values=cache, num_loops=3)
    with pytest.raises(ValueError, match="position 12 is past the 12 learned positions"):
        small(GPT2)(random_tokens(seq=SEQ + 1))
    for fields, message in (
        ({"bias": "yes"}, "bias='yes'"),
        ({"num_attention_heads": 7}, "not divisible by num_attention_heads=7"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_size": 5}, "head_size=5"),
    ):
        with pytest.raises(ValueError, match=message):
            LoopedGPTForCausalLM(LoopedGPTConfig(**fields))
