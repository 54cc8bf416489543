"""Hand-written gradients against finite differences and against torch's own operators."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.kernels import blocked_attention as blocked
from pretrain.model.kernels import documents as kernel_documents
from pretrain.model.kernels import head_loss as fused
from pretrain.model.kernels.documents import Documents
from pretrain.model.kernels.elementwise import RootMeanSquareNorm, Rotation
from pretrain.model.layers import attend


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return (
        torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        .to(dtype)
        .requires_grad_()
    )


def reference_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    heads=st.integers(1, 3),
    seq=st.integers(1, 20),
    width=st.sampled_from([2, 6]),
    rows=st.integers(1, 24),
    scratch=st.sampled_from([1, 100, 2**20]),
)
def test_attention_in_any_blocks_is_attention(
    batch: int, groups: int, heads: int, seq: int, width: int, rows: int, scratch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "BLOCK_ROWS", rows)
        patch.setattr(blocked, "SCRATCH_ELEMENTS", scratch)
        inputs = [
            random(batch, seq, count, width, seed=count).transpose(1, 2) for count in (groups * heads, groups, groups)
        ]
        weights = random(batch, groups * heads, seq, width).detach()
        ours, theirs = blocked.blocked_attention(*inputs), reference_attention(*inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        pairs = [torch.autograd.grad((mixed * weights).sum(), inputs) for mixed in (ours, theirs)]
    for gradient, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)


def test_attention_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_ROWS", 3)
    assert gradcheck(
        blocked.blocked_attention, (random(1, 4, 7, 2), random(1, 2, 7, 2, seed=1), random(1, 2, 7, 2, seed=2))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_as_exact_as_torchs(dtype: torch.dtype) -> None:
    inputs = [random(2, 4, 200, 16, dtype=dtype, seed=seed) for seed in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]

    def results(attention, tensors: list[Tensor]) -> list[Tensor]:
        mixed = attention(*tensors)
        return [mixed, *torch.autograd.grad(mixed, tensors, random(*mixed.shape, dtype=mixed.dtype, seed=3).detach())]

    expected = results(reference_attention, exact)
    errors = [
        [((a - b).norm() / b.norm()).item() for a, b in zip(results(attention, inputs), expected, strict=True)]
        for attention in (blocked.blocked_attention, reference_attention)
    ]
    assert all(ours < 2 * theirs for ours, theirs in zip(*errors, strict=True)), errors


def documents_of(*rows: list[int]) -> Documents:
    """From the lengths of the documents of each sequence."""
    starts = [[sum(row[:number]) for number, length in enumerate(row) for _ in range(length)] for row in rows]
    return Documents.of(torch.tensor(starts))


SHORT_AND_LONG = documents_of([2, 1, 9, 1, 1, 1, 4], [19], [1, 4, 4, 4, 1, 1, 1, 3])


@pytest.mark.parametrize("block_rows", [1, 4, 5, 128])
def test_attention_within_documents(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as by a mask: documents longer and shorter than a block, and the first sequences of a batch alone."""
    monkeypatch.setattr(blocked, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(kernel_documents, "BLOCK_ROWS", block_rows)
    batch = Documents.of(SHORT_AND_LONG.starts)
    monkeypatch.setattr(blocked, "SCRATCH_ELEMENTS", 40)
    queries, keys, values = random(3, 4, 19, 2), random(3, 2, 19, 2, seed=1), random(3, 2, 19, 2, seed=2)
    for documents, count in ((batch, 3), (batch.first(2), 2)):
        inputs = [queries[:count], keys[:count], values[:count]]
        ours = blocked.blocked_attention(*inputs, documents=documents)
        theirs = F.scaled_dot_product_attention(*inputs, attn_mask=documents.mask(), enable_gqa=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        weights = random(*ours.shape, seed=3).detach()
        pairs = [torch.autograd.grad((mixed * weights).sum(), (queries, keys, values)) for mixed in (ours, theirs)]
        for gradient, expected in zip(*pairs, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)


def test_a_mask_of_documents_looks_at_earlier_tokens_of_the_own_document() -> None:
    assert documents_of([2, 1]).mask().int().tolist() == [[[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]]


@pytest.mark.parametrize("lengths", [[256] * 8, [100] * 20 + [48]])
def test_attention_within_documents_touches_few_scores(lengths: list[int]) -> None:
    """No more than what causal attention by blocks needs of each document alone, and a fifth of the sequence's."""
    rows = blocked.BLOCK_ROWS
    work = sum((stop - row) * (stop - key) for _, key, row, stop, _ in documents_of(lengths).places.tolist())
    assert work <= sum(length**2 / 2 + length * rows / 2 for length in lengths)
    assert work < sum((row + rows) * rows for row in range(0, sum(lengths), rows)) / 5


def test_attention_of_variable_length_is_asked_for_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU computes, by a stand-in that follows the documentation of torch's function."""

    def stand_in(queries: Tensor, keys: Tensor, values: Tensor, *args: object, **settings: object) -> Tensor:
        bounds, same, most, _ = args
        assert bounds is same and most == 19 and settings == {"window_size": (-1, 0), "enable_gqa": True}
        assert isinstance(bounds, Tensor) and bounds.dtype == torch.int32
        parts = []
        for begin, end in pairwise(bounds.tolist()):
            own = [each[begin:end].transpose(0, 1)[None] for each in (queries, keys, values)]
            parts.append(reference_attention(*own)[0].transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    inputs = random(3, 4, 19, 2), random(3, 2, 19, 2, seed=1), random(3, 2, 19, 2, seed=2)
    wanted = F.scaled_dot_product_attention(*inputs, attn_mask=SHORT_AND_LONG.mask(), enable_gqa=True)
    documents = replace(SHORT_AND_LONG, places=SHORT_AND_LONG.bounds)  # as on a GPU
    torch.testing.assert_close(kernel_documents.attend_within(*inputs, documents), wanted, rtol=1e-12, atol=1e-12)


def test_a_model_does_not_load_the_compiler() -> None:
    """Which is a third of the time until a command answers."""
    code = "import sys, pretrain.model.gpt; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_attention_counts_its_work() -> None:
    queries, keys = random(2, 4, 8, 2), random(2, 2, 8, 2)
    with FlopCounterMode(display=False) as forward:
        mixed = blocked.blocked_attention(queries, keys, keys)
    with FlopCounterMode(display=False) as backward:
        mixed.sum().backward()
    assert forward.get_total_flops() == 2 * 4 * 2 * 2 * 8 * 8 * 2  # batch · heads · two products · 2·s²·e
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_attention_with_a_mask_looks_where_it_says() -> None:
    queries, keys, values = (random(2, 2, 5, 4, seed=seed) for seed in range(3))
    mask = torch.eye(5, dtype=torch.bool)[None, None]
    torch.testing.assert_close(attend(queries, keys, values, mask), values)


def test_norm() -> None:
    states, weight = random(5, 6), random(6, seed=1)
    assert gradcheck(lambda states, weight: RootMeanSquareNorm.apply(states, weight, 1e-2), (states, weight))
    torch.testing.assert_close(RootMeanSquareNorm.apply(states, weight, 1e-2), F.rms_norm(states, (6,), weight, 1e-2))


def test_norm_in_bf16_rounds_once() -> None:
    states, weight = random(50, 64, dtype=torch.bfloat16), random(64, dtype=torch.bfloat16, seed=1)
    exact = F.rms_norm(states.double(), (64,), weight.double(), 1e-5)
    assert torch.equal(RootMeanSquareNorm.apply(states, weight, 1e-5), exact.float().bfloat16())


def test_rotation() -> None:
    states, angles = random(2, 3, 2, 4), random(1, 3, 1, 2, seed=1).detach()
    assert gradcheck(lambda states: Rotation.apply(states, angles.cos(), angles.sin()), (states,))
    turned = Rotation.apply(states, angles.cos(), angles.sin())
    pairs, expected = (torch.complex(*tensor.chunk(2, -1)) for tensor in (turned, states))
    torch.testing.assert_close(pairs, expected * torch.polar(torch.ones_like(angles), angles))


@pytest.mark.parametrize("block_rows", [1, 2, 100])
@pytest.mark.parametrize("z_loss_weight", [0.0, 0.1])
def test_head_loss_gradients(monkeypatch: pytest.MonkeyPatch, block_rows: int, z_loss_weight: float) -> None:
    monkeypatch.setattr(fused, "LOSS_BLOCK_TOKENS", block_rows)
    labels = torch.tensor([1, -100, 3, 0, 8])
    assert gradcheck(
        lambda states, head: fused.head_loss(states, head, labels, z_loss_weight)[0],
        (random(5, 6), random(9, 6, seed=1)),
    )


def test_head_loss_survives_extreme_logits() -> None:
    states, head = torch.tensor([[400.0], [-400.0]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.0]])
    loss, _ = fused.head_loss(states, head, torch.tensor([1, 1]), 0.0)
    torch.testing.assert_close(loss.item(), 800.0)
    torch.testing.assert_close(torch.autograd.grad(loss, states)[0], torch.tensor([[2.0], [0.0]]))


def test_head_loss_computes_no_gradients_unasked() -> None:
    states, head = random(5, 6), random(9, 6, seed=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss, _ = fused.head_loss(states, head, torch.tensor([1, 2, 3, 0, 8]), 0.0)
    assert counter.get_total_flops() == 2 * 5 * 6 * 9
    assert not loss.requires_grad


@pytest.mark.parametrize("documents", [None, documents_of([3, 1, 8], [12])], ids=["plain", "documents"])
def test_compiled_layers_equal_eager_ones(documents: Documents | None) -> None:
    """Traced whole, without the code generation that needs a compiler."""
    config = ModelSection(
        vocab_size=16, hidden_size=16, num_attention_heads=2, ffn_size=24, num_loop_layers=2, num_loops=2, init_std=0.2
    )
    tokens = torch.arange(24).view(2, 12) % 16
    results = []
    torch._dynamo.reset()
    counters.clear()
    for compiled in (False, True):
        model = LoopedGPT(config, 12)
        initialise(model, seed=0)
        model.double()
        if compiled:
            for layer in model.loop.values():
                layer.compile(backend="aot_eager", fullgraph=True)
        loss = model(tokens, documents=documents).square().sum()
        results.append((loss, torch.autograd.grad(loss, list(model.loop.parameters()))))
        model(tokens, 5, documents=documents).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1, "a layer is traced again in another loop"
    (loss, gradients), (compiled_loss, compiled_gradients) = results
    torch.testing.assert_close(compiled_loss, loss)
    for gradient, expected in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
