"""The steps of fine-tuning: every example once an epoch, the same rows on any ranks, passes that all ranks agree on."""

import math
from collections import Counter
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.answers.answering import StageAnswerer
from finetune.config import FinetuneConfig, check_layout, ledger
from finetune.examples.examples import EncodedExample, ExampleSet, TextForm
from finetune.examples.sampler import Sampler, StepBatch
from finetune.examples.sequence import RowMaker
from finetune.latent.batch import LatentBatch
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.config import ModelSection

TOKENIZER = Tokenizer.load("symbols:abcdefghijklmnopqrstuvwxyz")
FIRST = TOKENIZER.encode("a")[0]


def examples(count: int) -> list[EncodedExample]:
    """Told apart by their question, of two tokens; chains of 0 to 4 steps."""
    questions = [(FIRST + number // 20, FIRST + number % 20) for number in range(count)]
    return [
        EncodedExample(question, ((FIRST + 21,),) * (number % 5), (FIRST + 22, 2))
        for number, question in enumerate(questions)
    ]


def config(effective_batch: int, micro_batch: int, **sections: dict[str, object]) -> FinetuneConfig:
    task = {"task": "prosqa", "num_examples": 1}
    return FinetuneConfig.model_validate(
        {
            "data": {"train": task, "validation": task, "tokenizer": "symbols:a"},
            "train": {"effective_batch": effective_batch, "micro_batch": micro_batch, "seq_len": 64},
            "curriculum": {"uniform_prob": 0.5, "first_stage_epochs": 1, "epochs_per_stage": 1},
            **sections,
        }
    )


def steps_of_ranks(settings: FinetuneConfig, num_examples: int, ranks: int, epoch: int, index: int) -> list[StepBatch]:
    maker = RowMaker(settings.chosen_method, settings.curriculum, True, TOKENIZER)
    layout = check_layout(settings, ranks)
    return [Sampler(examples(num_examples), maker, settings, layout, rank).step(epoch, index) for rank in range(ranks)]


def rows_in(step: StepBatch) -> Counter[tuple[tuple[int, ...], int, int]]:
    """Each row as its tokens, latent slots and targets, padding and fillers taken away."""
    found: Counter[tuple[tuple[int, ...], int, int]] = Counter()
    for micro_batch in step.micro_batches:
        batch = micro_batch.batch
        for row in range(len(batch.tokens)):
            targets = int((batch.labels[row] >= 0).sum())
            if targets:
                tokens = batch.tokens[row, int(batch.first_token[row]) :]
                last = int((batch.labels[row] >= 0).nonzero().max()) + 1 - int(batch.first_token[row])
                found[tuple(tokens[: last + 1].tolist()), int(batch.is_latent[row].sum()), targets] += 1
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 9), st.sampled_from([1, 2, 4]))
def test_an_epoch_has_every_example_once(num_examples: int, epoch: int, ranks: int) -> None:
    settings_ = config(8, 2)
    steps = math.ceil(num_examples / 8)
    seen: Counter[tuple[int, ...]] = Counter()
    for index in range(steps):
        for step in steps_of_ranks(settings_, num_examples, ranks, epoch, index):
            seen.update(tokens[:2] for tokens, _, _ in rows_in(step).elements())
    assert sorted(seen.elements()) == sorted(example.question for example in examples(num_examples))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(0, 3), st.sampled_from([(8, 1, 2), (8, 2, 4), (16, 4, 2), (16, 4, 4)]))
def test_ranks_share_out_the_rows_of_one(epoch: int, index: int, sizes: tuple[int, int, int]) -> None:
    effective, micro, ranks = sizes
    alone = steps_of_ranks(config(effective, effective), 50, 1, epoch, index)[0]
    shares = steps_of_ranks(config(effective, micro), 50, ranks, epoch, index)
    assert sum((rows_in(share) for share in shares), Counter()) == rows_in(alone)
    for name in ("num_examples", "num_targets", "num_thoughts", "num_tokens"):
        assert {getattr(share, name) for share in shares} == {getattr(alone, name)}
    assert alone.num_targets == sum(targets * count for (_, _, targets), count in rows_in(alone).items())
    assert alone.num_thoughts == sum(thoughts * count for (_, thoughts, _), count in rows_in(alone).items())
    for turn in zip(*(share.micro_batches for share in shares), strict=True):
        assert len({micro_batch.num_slots for micro_batch in turn}) == 1  # ranks make as many passes
        most = max(int(micro_batch.batch.is_latent.sum(1).max()) for micro_batch in turn)
        assert turn[0].num_slots == most


def test_a_step_depends_on_seed_epoch_and_index_alone() -> None:
    settings_ = config(8, 4)
    maker = RowMaker(settings_.chosen_method, settings_.curriculum, True, TOKENIZER)
    sampler = Sampler(examples(50), maker, settings_, check_layout(settings_, 2), 1)
    first = sampler.step(3, 2)
    sampler.step(4, 0)
    again = sampler.step(3, 2)
    fresh = steps_of_ranks(settings_, 50, 2, 3, 2)[1]
    for other in (again, fresh):
        for mine, theirs in zip(first.micro_batches, other.micro_batches, strict=True):
            assert torch.equal(mine.batch.tokens, theirs.batch.tokens) and torch.equal(
                mine.batch.labels, theirs.batch.labels
            )
    assert rows_in(sampler.step(5, 2)) != rows_in(first)
    other_seed = settings_.model_copy(update={"run": settings_.run.model_copy(update={"seed": 1})})
    assert rows_in(steps_of_ranks(other_seed, 50, 2, 3, 2)[1]) != rows_in(first)


def test_the_teacher_reads_the_same_examples_in_text() -> None:
    settings_ = config(8, 4, method={"distillation_weight": 1.0})
    step = steps_of_ranks(settings_, 50, 1, 9, 0)[0]
    for micro_batch in step.micro_batches:
        teacher = micro_batch.added
        assert isinstance(teacher, LatentBatch) and not teacher.is_latent.any()
        assert teacher.answer is not None and micro_batch.batch.answer is not None
        for row in range(len(teacher.tokens)):
            ours, theirs = (batch.tokens[row, int(batch.first_token[row]) :] for batch in (micro_batch.batch, teacher))
            assert ours[:2].tolist() == theirs[:2].tolist()  # the question
            for batch in (micro_batch.batch, teacher):
                assert batch.answer is not None
                assert batch.labels[row, int(batch.answer[row])] == FIRST + 22
    assert step.added.rows == 8 and step.added.tokens > step.added.targets > 8
    assert steps_of_ranks(config(8, 4), 50, 1, 9, 0)[0].added == (0, 0, 0)


def test_an_effective_batch_that_does_not_fit_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"effective_batch=8 is not divisible by .* size=6"):
        check_layout(config(8, 2), 3)
    assert (
        ledger(config(8, 2), check_layout(config(8, 2), 2))
        == "effective batch: 2 examples x 2 accumulated x 2 data-parallel ranks = 8"
    )


def test_an_example_that_can_be_too_long_is_named() -> None:
    settings_ = config(8, 4)
    maker = RowMaker(settings_.chosen_method, settings_.curriculum, True, TOKENIZER)
    sampler = Sampler(examples(5), maker, settings_, check_layout(settings_, 1), 0)
    longest = 2 + 1 + 6 + 1 + 4 + 2  # question, <bot>, slots, <eot>, steps, answer
    sampler.require_length(longest)
    with pytest.raises(
        ValueError, match=rf"example 4 can have {longest} tokens, more than train\.seq_len={longest - 1}"
    ):
        sampler.require_length(longest - 1)


@pytest.mark.parametrize(
    ("method", "needs_steps"),
    [
        ("cot", True),
        ("coconut", True),
        ("codi", True),
        ("no_cot", False),
        ("pause", False),
        ("without_curriculum", False),
    ],
)
def test_a_method_that_is_trained_on_steps_is_refused_without_any(method: str, needs_steps: bool) -> None:
    """It would be no-CoT by another name."""
    settings_ = config(8, 2, method={"name": method}, curriculum={"num_stages": 3, "thoughts_per_step": 2})
    maker = RowMaker(settings_.chosen_method, settings_.curriculum, True, TOKENIZER)

    def sampler(found: list[EncodedExample]) -> Sampler:
        return Sampler(found, maker, settings_, check_layout(settings_, 1), 0)

    sampler(examples(5)).require_steps()
    without = sampler([example._replace(steps=()) for example in examples(5)])
    if not needs_steps:
        without.require_steps()
        return
    with pytest.raises(
        ValueError, match=rf"no example has a step of reasoning, which method\.name={method} is trained"
    ):
        without.require_steps()


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_questions_and_answers_beyond_what_is_trained_on_are_refused_or_said_before_the_start(positions: str) -> None:
    shape = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 16, "num_loop_layers": 1}
    settings_ = config(8, 2, curriculum={"num_stages": 3, "thoughts_per_step": 2}, validation={"max_new_tokens": 10})
    questions = ExampleSet(examples=[], encoded=examples(7), form=TextForm())
    longest = 2 + 1 + 6 + 1 + 10 - 1  # question, <bot>, thoughts of the last stage, <eot>, text without its last token

    def check(seq_len: int) -> list[str]:
        model = ModelSection.model_validate({**shape, "positions": positions})
        saved = SavedModel(run="x", model=model, seq_len=seq_len, precision="fp32", tokenizer="symbols:a", max_loops=1)
        no_ranks = cast(Any, None)
        return StageAnswerer(settings_, saved, TOKENIZER, no_ranks, no_ranks).check_lengths("test", questions)

    if positions == "rope":
        most = 2 + 1 + 6 + 1 + 4 + 2  # question, <bot>, slots, <eot>, steps, answer
        assert check(most) == []
        assert check(most - 1) == [
            f"data.test: example 4 can have {most} tokens, and nothing longer than train.seq_len={most - 1} is trained "
            "on"
        ]
        return
    assert check(longest) == []
    with pytest.raises(ValueError, match=rf"data.test: example 0: a question with its answer can take {longest} pos"):
        check(longest - 1)
