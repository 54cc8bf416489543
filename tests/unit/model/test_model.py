"""The looped model against itself unrolled, against plain Llama and GPT-2 of transformers, cached, recomputed and
masked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.layers import KeyValueCache
from pretrain.model.loop.recurrence import Application
from pretrain.model.loss import loss_sums

VOCAB, SEQ = 64, 12
LLAMA = ModelSection(
    vocab_size=VOCAB,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    ffn_size=48,
    num_loop_layers=2,
    init_std=0.2,
)
GPT2 = LLAMA.model_copy(
    update={
        "num_key_value_heads": None,
        "ffn_size": 128,
        "norm": "layer",
        "positions": "learned",
        "activation": "gelu",
        "bias": "all",
        "tied_head": True,
    }
)
QWEN3 = LLAMA.model_copy(update={"qk_norm": "head", "head_size": 12})
OLMO2 = LLAMA.model_copy(update={"qk_norm": "all", "norm_place": "after"})
OURO, HUGINN, POST = (LLAMA.model_copy(update={"norm_place": place}) for place in ("both", "around", "sum"))
FAMILIES = {
    "llama": LLAMA, "gpt2": GPT2, "qwen3": QWEN3, "olmo2": OLMO2, "ouro": OURO, "huginn": HUGINN, "post-norm": POST
}  # fmt: skip
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def build(
    config: ModelSection, *, dtype: torch.dtype = torch.float64, recompute: str = "none", **changes: Any
) -> LoopedGPT:
    """A model with random weights everywhere, norms and biases too, so that none can be left out unseen."""
    model = LoopedGPT(ModelSection.model_validate(config.model_dump() | changes), SEQ, recompute=recompute)
    initialise(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def random_tokens(batch: int = 3, seq: int = SEQ) -> Tensor:
    return torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(2))


def gradients(model: LoopedGPT, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def loss_of(model: LoopedGPT, num_loops: int | None = None, z_loss_weight: float = 0.0) -> Tensor:
    tokens = random_tokens()
    return loss_sums(model, model(tokens, num_loops), tokens.roll(-1, 1), z_loss_weight)[0]


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# Loops


def unrolled_loss(model: LoopedGPT, copies: LoopedGPT, num_loops: int, injection: str) -> Tensor:
    """The looped model's loss with layers of their own for every loop, taken from `copies`; the loop written out by
    hand."""
    tokens, block = random_tokens(), model.config.num_loop_layers
    context = model.context(tokens)
    states, _ = model.begin(tokens, context)
    start = states
    for number in range(num_loops * block):
        if number and number % block == 0 and injection == "add":
            states = states + start
        states = copies.loop[str(number)](states, context, Application(number, None))
    return loss_sums(model, model.finish(states, context, num_loops), tokens.roll(-1, 1))[0]


@families
@pytest.mark.parametrize("injection", ["none", "add"])
@pytest.mark.parametrize("ends", [0, 1])
def test_loops_are_copied_layers_with_summed_gradients(family: ModelSection, injection: str, ends: int) -> None:
    num_loops, block = 3, family.num_loop_layers
    model = build(
        family, num_loops=num_loops, num_prelude_layers=ends, num_coda_layers=ends, loop={"injection": injection}
    )
    copies = build(family, num_loop_layers=num_loops * block)
    for number in range(num_loops * block):
        copies.loop[str(number)].load_state_dict(model.loop[str(number % block)].state_dict())
    looped, unrolled = loss_of(model), unrolled_loss(model, copies, num_loops, injection)
    torch.testing.assert_close(looped, unrolled, rtol=1e-12, atol=0)
    own, expected, of_copies = gradients(model, looped), gradients(model, unrolled), gradients(copies, unrolled)
    for name in (name for name in own if name.startswith("loop.")):
        _, number, rest = name.split(".", 2)
        expected[name] = torch.stack(
            [of_copies[f"loop.{int(number) + loop * block}.{rest}"] for loop in range(num_loops)]
        ).sum(0)
    assert_same(own, expected)


@families
def test_one_loop_is_the_plain_model(family: ModelSection) -> None:
    plain = build(family, num_loop_layers=4)
    looped = build(family, num_prelude_layers=1, num_coda_layers=1, num_loops=5, loop={"injection": "add"})
    places = {"prelude.0": "loop.0", "loop.0": "loop.1", "loop.1": "loop.2", "coda.0": "loop.3"}
    state = plain.state_dict()
    for place, layer in places.items():
        looped.get_submodule(place).load_state_dict(plain.get_submodule(layer).state_dict())
    looped.load_state_dict({name: value for name, value in state.items() if not name.startswith("loop.")}, strict=False)
    tokens = random_tokens()
    assert torch.equal(looped(tokens, 1), plain(tokens))
    assert not torch.allclose(looped(tokens, 2), plain(tokens))


def test_the_configuration_gives_the_loop_count() -> None:
    model = build(LLAMA, num_loops=3)
    tokens = random_tokens()
    assert torch.equal(model(tokens), model(tokens, 3))
    assert not torch.equal(model(tokens), model(tokens, 2))


# Published models


def copy_linears(model: LoopedGPT, reference: Callable[[int, str], Tensor], names: dict[str, str]) -> None:
    for number, layer in model.loop.items():
        for ours, theirs in names.items():
            layer.get_parameter(ours).data.copy_(reference(int(number), theirs))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_equal_those_of_llama(kv_heads: int) -> None:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    reference = LlamaForCausalLM(shape)
    model = build(LLAMA, dtype=torch.float32, num_key_value_heads=kv_heads, num_loop_layers=3)
    theirs = reference.state_dict()
    for norm in (name for name in theirs if name.endswith("norm.weight")):
        theirs[norm].normal_(1, 0.3)  # state_dict shares memory: the reference has it too
    names = {
        "attention_norm.weight": "input_layernorm",
        "attention.query.weight": "self_attn.q_proj",
        "attention.key.weight": "self_attn.k_proj",
        "attention.value.weight": "self_attn.v_proj",
        "attention.output.weight": "self_attn.o_proj",
        "ffn_norm.weight": "post_attention_layernorm",
        "ffn.gate.weight": "mlp.gate_proj",
        "ffn.up.weight": "mlp.up_proj",
        "ffn.down.weight": "mlp.down_proj",
    }
    copy_linears(model, lambda number, name: theirs[f"model.layers.{number}.{name}.weight"], names)
    for ours, name in {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}.items():
        model.get_parameter(f"{ours}.weight").data.copy_(theirs[f"{name}.weight"])
    tokens = random_tokens()
    expected = reference(input_ids=tokens).logits.flatten(0, 1)
    assert expected.std() > 0.5
    torch.testing.assert_close(model.logits(model(tokens)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_equal_those_of_gpt2(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=VOCAB,
        n_positions=SEQ,
        n_embd=32,
        n_layer=3,
        n_head=4,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        initializer_range=0.2,
    )
    reference = GPT2LMHeadModel(shape)
    torch.nn.Module.to(reference, dtype)
    theirs = reference.state_dict()
    for name in (name for name in theirs if name.endswith("bias")):
        theirs[name].normal_(0, 0.3)
    model = build(GPT2, dtype=dtype, num_loop_layers=3)
    names = {
        "attention_norm": "ln_1",
        "attention.output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn.up": "mlp.c_fc",
        "ffn.down": "mlp.c_proj",
    }
    for kind in ("weight", "bias"):
        copy_linears(
            model,
            lambda number, name: theirs[f"transformer.h.{number}.{name}"].t(),  # theirs stores linear layers transposed
            {f"{ours}.{kind}": f"{name}.{kind}" for ours, name in names.items()},
        )
        for part, ours in enumerate(("query", "key", "value")):
            copy_linears(
                model,
                lambda number, name, part=part: theirs[f"transformer.h.{number}.{name}"].chunk(3, -1)[part].t(),
                {f"attention.{ours}.{kind}": f"attn.c_attn.{kind}"},
            )
    for ours, name in {"embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}.items():
        model.get_submodule(ours).load_state_dict(
            {kind: theirs[f"transformer.{name}.{kind}"] for kind, _ in model.get_submodule(ours).named_parameters()}
        )
    tokens = random_tokens()
    expected = reference(input_ids=tokens).logits.flatten(0, 1)
    assert expected.std() > 0.5
    torch.testing.assert_close(model.logits(model(tokens)), expected, rtol=tolerance, atol=tolerance)


# Cache, recomputation, masks


@families
@pytest.mark.parametrize("num_loops", [1, 3])
def test_cached_equals_uncached_with_gradients(family: ModelSection, num_loops: int) -> None:
    model = build(family, num_prelude_layers=1, num_coda_layers=1, loop={"injection": "add"})
    tokens, labels = random_tokens(), random_tokens().roll(-1, 1)
    whole = model(tokens, num_loops)
    cache, parts = KeyValueCache(), []
    for first, last in ((0, 5), (5, 6), (6, 7), (7, SEQ)):
        parts.append(model(tokens[:, first:last], num_loops, cache=cache).view(3, last - first, -1))
    pieces = torch.cat(parts, dim=1).flatten(0, 1)
    assert cache.length == SEQ
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-10)
    assert_same(
        gradients(model, loss_sums(model, pieces, labels)[0]), gradients(model, loss_sums(model, whole, labels)[0])
    )


@families
@pytest.mark.parametrize("recompute", ["selective", "loop", "layer", "offload", "segment"])
def test_recomputation_keeps_the_gradients(family: ModelSection, recompute: str) -> None:
    changes: dict[str, Any] = {"num_loops": 3, "num_prelude_layers": 1, "num_coda_layers": 1}
    plain, recomputing = build(family, **changes), build(family, recompute=recompute, **changes)
    assert_same(gradients(recomputing, loss_of(recomputing)), gradients(plain, loss_of(plain)), 1e-14)


@families
def test_documents_in_one_row_equal_documents_alone(family: ModelSection) -> None:
    model = build(family, num_loops=2)
    tokens, lengths = random_tokens(batch=2), ((5, 7), (3, 9))
    segments = torch.tensor([[0] * a + [1] * b for a, b in lengths])
    positions = torch.tensor([[*range(a), *range(b)] for a, b in lengths])
    mask = ((segments[:, :, None] == segments[:, None, :]) & torch.ones(SEQ, SEQ, dtype=torch.bool).tril())[:, None]
    packed = model(tokens, positions=positions, mask=mask)
    alone = torch.cat(
        [model(part) for row, sizes in zip(tokens, lengths, strict=True) for part in row[None].split(list(sizes), 1)]
    )
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)
    assert_same(gradients(model, packed.square().sum()), gradients(model, alone.square().sum()))


def test_no_token_sees_a_later_one() -> None:
    model, tokens = build(LLAMA, num_loops=2), random_tokens()
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    before, after = model(tokens).view(3, SEQ, -1), model(changed).view(3, SEQ, -1)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=1e-14)
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


# Loss and precision


@pytest.mark.parametrize("z_loss_weight", [0.0, 0.1])
def test_loss_is_summed_over_supervised_tokens(z_loss_weight: float) -> None:
    model, tokens = build(LLAMA, num_loops=2), random_tokens()
    labels = tokens.roll(-1, 1)
    labels[0, 3:] = labels[2, 1] = -100
    states = model(tokens)
    of_tokens = torch.full(labels.shape, 9.0, dtype=torch.float64)
    loss, nll = loss_sums(model, states, labels, z_loss_weight, of_tokens)
    assert loss_sums(model, states, labels, z_loss_weight)[1].equal(nll)
    logits, flat = model.logits(states), labels.flatten()
    normaliser = torch.logsumexp(logits, -1)[flat >= 0]
    expected = torch.nn.functional.cross_entropy(logits, flat, reduction="sum")
    torch.testing.assert_close(nll, expected)
    each = torch.nn.functional.cross_entropy(logits, flat, reduction="none").view_as(labels)
    torch.testing.assert_close(of_tokens, each.to(torch.float64))
    assert not nll.requires_grad
    expected = expected + z_loss_weight * normaliser.square().sum()
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(model, loss), gradients(model, expected))


def test_loss_without_supervision_is_zero() -> None:
    model = build(LLAMA)
    loss, nll = loss_sums(model, model(random_tokens()), torch.full((3, SEQ), -100), 0.1)
    assert loss.item() == nll.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients(model, loss).values())


@families
def test_bf16_is_near_fp32(family: ModelSection) -> None:
    small = family.model_copy(update={"init_std": 0.1, "num_loops": 3})
    narrow, wide = build(small, dtype=torch.bfloat16), build(small, dtype=torch.float32)
    wide.load_state_dict(narrow.state_dict())
    loss, reference = loss_of(narrow), loss_of(wide)
    # norms after: every term of the stream is of full size, and its rounding
    tolerance = 0.03 if family.norm_place == "after" else 0.02
    assert loss.dtype == torch.float32
    assert abs(loss.item() / reference.item() - 1) < 5e-3
    ours, expected = (
        torch.cat([gradient.float().flatten() for gradient in gradients(*pair).values()])
        for pair in ((narrow, loss), (wide, reference))
    )
    assert (ours - expected).norm() < tolerance * expected.norm()
