"""Soft Thinking and Mixture of Inputs: answers equal whole passes by the formula, in any batch; where thoughts end."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.latent.generation import Answer, AnswerSettings, answer_flops, generate_with_thoughts
from finetune.latent.soft import SoftThinking
from pretrain.model.gpt import LoopedGPT
from tests.unit.generation.test_sampling import make_model

VOCAB, MARK = 61, 9
PROMPTS = [[2, 10, 11, 12, 13, 14, 15], [2], [2, 30, 31], [2, 40, 41, 42]]


def how(num_thoughts: int, **changes: Any) -> AnswerSettings:
    soft = SoftThinking(**({"vocab_size": VOCAB, "end": MARK} | changes))
    return AnswerSettings(
        max_new_tokens=5, vocab_size=VOCAB, eos_id=-2, thinking=soft, num_slots=num_thoughts, forced_text=(MARK,)
    )


@torch.no_grad()
def by_definition(model: LoopedGPT, prompt: list[int], settings: AnswerSettings) -> Answer:
    """Whole passes over one row."""
    soft, answer = settings.thinking, Answer()
    assert isinstance(soft, SoftThinking) and model.embedding is not None
    table = model.embedding(torch.arange(VOCAB))

    def next_logits(inputs: Tensor) -> Tensor:
        states = model(torch.zeros(inputs.shape[:2], dtype=torch.int64), embeddings=inputs)
        return model.all_logits(states[-1:])[0, :VOCAB]

    inputs, num_sure = model.embedding(torch.tensor([prompt])), 0
    for _ in range(settings.num_slots):
        logits = next_logits(inputs)
        p, best = logits.softmax(0), int(logits.argmax())
        entropy = float(-(p * p.log()).sum())
        num_sure = num_sure + 1 if entropy < soft.threshold else 0
        if best == soft.end or num_sure == soft.patience:
            break
        thought = p @ table
        if soft.beta is not None:
            share, one = entropy / math.log(VOCAB), torch.eye(VOCAB, dtype=p.dtype)[best]
            thought = share * ((p + soft.beta * one) / (1 + soft.beta)) @ table + (1 - share) * table[best]
        inputs = torch.cat((inputs, thought[None, None]), dim=1)
        answer.num_thoughts += 1
    inputs = torch.cat((inputs, table[None, [MARK]]), dim=1)
    for _ in range(settings.max_new_tokens):
        answer.text.append(int(next_logits(inputs).argmax()))
        inputs = torch.cat((inputs, table[None, answer.text[-1:]]), dim=1)
    return answer


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("changes", [{}, {"beta": 1.0}, {"threshold": 3.5, "patience": 2}], ids=str)
def test_a_batch_gives_what_the_formula_gives_each_row(family: str, changes: dict[str, Any]) -> None:
    model = make_model(family)
    for num_thoughts in (1, 4):
        settings = how(num_thoughts, **changes)
        wanted = [by_definition(model, prompt, settings) for prompt in PROMPTS]
        assert generate_with_thoughts(model, PROMPTS, settings) == wanted
        assert [generate_with_thoughts(model, [prompt], settings)[0] for prompt in PROMPTS] == wanted


def test_rows_end_where_they_would_begin_the_answer_while_others_think() -> None:
    """The mark is the token that one row finds likeliest after two thoughts."""
    model = make_model()
    numbers = set()
    for end in range(VOCAB):
        settings = how(4, end=end)
        answers = generate_with_thoughts(model, PROMPTS, settings)
        if len({answer.num_thoughts for answer in answers}) > 1:
            assert answers == [by_definition(model, prompt, settings) for prompt in PROMPTS]
            numbers |= {answer.num_thoughts for answer in answers}
    assert len(numbers) > 1


def test_flops_are_those_that_torch_counts() -> None:
    model, settings = make_model(), how(4, end=-1)
    prompts = [[7, 8, 9, 10, 11], [12]]  # with padding, attention is the unfused kernel
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        answers = generate_with_thoughts(model, prompts, settings)
    assert counter.get_total_flops() == pytest.approx(2 * answer_flops(model.config, 5, settings, answers[0]), rel=0.02)
