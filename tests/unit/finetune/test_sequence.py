"""Rows and batches of fine-tuning: what is supervised, what stands in the slots, and which methods are the same at
which stage."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.examples.examples import EncodedExample
from finetune.examples.sequence import EMPTY_ROW, RowMaker, TrainingRow, collate
from finetune.latent.sequential import Sequential
from finetune.method.curriculum import CurriculumSection, cut_at
from finetune.method.markers import Markers
from finetune.method.methods import METHODS, MethodName
from pretrain.data.stream.labels import IGNORED
from pretrain.data.tokenizers.symbols import SPECIALS, SymbolTokenizer, write_symbols
from tests.support.latent_cases import loss_of
from tests.unit.model.test_model import LLAMA, build

TOKENIZER = SymbolTokenizer(write_symbols([chr(ord("a") + number) for number in range(26)]))
BOT, EOT, LATENT, PAUSE = (TOKENIZER.thought_id(f"<{name}>") for name in ("bot", "eot", "latent", "pause"))
MARKERS = {BOT, EOT, LATENT, PAUSE}
CURRICULUM = CurriculumSection(num_stages=3, thoughts_per_step=2, tokens_per_stage=2)
WITHOUT_SLOTS = CURRICULUM.model_copy(update={"thoughts_per_step": 0})
STAGES = range(CURRICULUM.last_stage + 1)
WITH_MARKERS: tuple[MethodName, ...] = ("coconut", "pause", "without_curriculum", "pause_as_thought")

checked = settings(deadline=None, max_examples=60)
words = st.integers(len(SPECIALS), TOKENIZER.vocab_size - 1)


@st.composite
def examples(draw: Any) -> EncodedExample:
    question = draw(st.lists(words, min_size=1, max_size=5))
    steps = draw(st.lists(st.lists(words, min_size=1, max_size=3), max_size=5))
    answer = draw(st.lists(words, min_size=1, max_size=4))
    num_mark_tokens = draw(st.integers(0, len(answer) - 1))
    return EncodedExample(tuple(question), tuple(map(tuple, steps)), (*answer, TOKENIZER.eos_id), num_mark_tokens)


def make_row(
    name: MethodName,
    example: EncodedExample,
    stage: int,
    *,
    curriculum: CurriculumSection = CURRICULUM,
    markers: bool = True,
) -> TrainingRow:
    """A row of a method at a stage."""
    method = METHODS[name]
    length = sum(map(len, example.steps)) if method.removal == "token" else len(example.steps)
    return RowMaker(method, curriculum, markers, TOKENIZER).row(example, cut_at(curriculum, method, stage, length))


def text_of(row: TrainingRow) -> tuple[int, ...]:
    """The tokens that have a label."""
    return row.tokens[row.first_target :]


@checked
@given(example=examples(), stage=st.sampled_from(STAGES), name=st.sampled_from(sorted(METHODS)), markers=st.booleans())
def test_the_text_after_eot_has_labels_and_nothing_else_has(
    example: EncodedExample, stage: int, name: MethodName, markers: bool
) -> None:
    row = make_row(name, example, stage, markers=markers)
    batch = collate([row])
    places = batch.supervised.tolist()
    chain = [token for step in example.steps for token in step]
    removed = len(chain) + len(example.answer) - len(places)
    assert batch.labels[0, places].tolist() == chain[removed:] + list(example.answer)
    # up to the last but one: eos predicts nothing
    assert places == list(range(len(row.tokens) - 1 - len(places), len(row.tokens) - 1))
    assert (batch.labels[0] != IGNORED).sum() == len(places)
    assert all(batch.labels[0, place] == batch.tokens[0, place + 1] for place in places)
    before = row.tokens[: places[0] + 1]
    if EOT in row.tokens:
        assert before[-1] == EOT and before == (*example.question, BOT, *before[len(example.question) + 1 : -1], EOT)
    else:
        assert before == example.question and not MARKERS & set(row.tokens)


@checked
@given(example=examples(), stage=st.sampled_from(STAGES))
def test_no_slots_a_step_is_without_thought(example: EncodedExample, stage: int) -> None:
    wanted = make_row("without_thought", example, stage)
    for name in WITH_MARKERS:
        assert make_row(name, example, stage, curriculum=WITHOUT_SLOTS) == wanted


@checked
@given(example=examples())
def test_the_first_stage_is_cot_but_for_the_markers(example: EncodedExample) -> None:
    cot = make_row("cot", example, 0)
    assert cot.tokens == (*example.question, *(token for step in example.steps for token in step), *example.answer)
    for name in ("coconut", "pause_as_thought"):
        marked = make_row(name, example, 0)
        assert marked.tokens == (*example.question, BOT, EOT, *text_of(cot)) and text_of(marked) == text_of(cot)
        assert make_row(name, example, 0, markers=False) == cot
    assert make_row("without_thought", example, 0) == make_row("icot", example, 0) == cot


@checked
@given(example=examples(), stage=st.sampled_from(STAGES[1:]))
def test_slots_stand_in_place_of_steps(example: EncodedExample, stage: int) -> None:
    row = make_row("coconut", example, stage)
    number = 2 * min(stage, CURRICULUM.num_stages)
    kept = example.steps[stage:] if stage <= CURRICULUM.num_stages else ()
    text = (*(token for step in kept for token in step), *example.answer)
    assert row.tokens == (*example.question, BOT, *[LATENT] * number, EOT, *text)
    assert row.num_thoughts == number and row.first_slot == len(example.question) + 1
    paused = make_row("pause_as_thought", example, stage)
    assert paused.tokens == tuple(PAUSE if token == LATENT else token for token in row.tokens)
    assert paused.num_thoughts == 0 and text_of(paused) == text_of(row)
    assert make_row("without_thought", example, stage).tokens == (*example.question, *text)


@checked
@given(example=examples())
def test_methods_of_the_last_stage_have_no_text_of_the_chain(example: EncodedExample) -> None:
    last = CURRICULUM.last_stage
    for name in METHODS:
        if METHODS[name].stages != "first":
            assert text_of(make_row(name, example, last)) == example.answer
    assert make_row("without_curriculum", example, last) == make_row("coconut", example, last)
    assert make_row("pause", example, last) == make_row("pause_as_thought", example, last)
    assert make_row("no_cot", example, last).tokens == (*example.question, *example.answer)


@checked
@given(example=examples(), stage=st.sampled_from(STAGES[:-1]))
def test_icot_removes_tokens_from_the_front_of_the_chain(example: EncodedExample, stage: int) -> None:
    chain = [token for step in example.steps for token in step]
    assert make_row("icot", example, stage).tokens == (*example.question, *chain[2 * stage :], *example.answer)


@checked
@given(
    many=st.lists(
        st.tuples(examples(), st.sampled_from(STAGES), st.sampled_from(sorted(METHODS))), min_size=1, max_size=5
    )
)
def test_a_batch_holds_its_rows_with_slots_at_one_place(many: list[tuple[EncodedExample, int, MethodName]]) -> None:
    rows = [make_row(name, example, stage) for example, stage, name in many] + [EMPTY_ROW]
    batch = collate(rows)
    assert batch.first_slot == max(row.first_slot for row in rows)
    assert batch.supervised.tolist() == [
        place for place, label in enumerate(batch.labels.flatten().tolist()) if label != IGNORED
    ]
    assert batch.answer is not None
    for number, row in enumerate(rows):
        first = int(batch.first_token[number])
        assert first + row.first_slot == batch.first_slot
        assert tuple(batch.tokens[number, first : first + len(row.tokens)].tolist()) == row.tokens
        assert [place for place, is_slot in enumerate(batch.is_latent[number].tolist()) if is_slot] == list(
            range(batch.first_slot, batch.first_slot + row.num_thoughts)
        )
        assert (batch.labels[number] != IGNORED).sum() == row.num_targets
        if number < len(many):
            answer = many[number][0].answer
            place = int(batch.answer[number])
            assert batch.labels[number, place : place + 1].tolist() == [answer[many[number][0].num_mark_tokens]]
    assert int(batch.answer[-1]) == -1 and (batch.labels[-1] == IGNORED).all()


@settings(deadline=None, max_examples=15)
@given(many=st.lists(st.tuples(examples(), st.sampled_from(STAGES[:2])), min_size=2, max_size=4))
def test_a_row_has_the_same_loss_in_any_batch(many: list[tuple[EncodedExample, int]]) -> None:
    model = build(LLAMA)
    rows = [make_row("coconut", example, stage) for example, stage in many]

    def loss(chosen: list[TrainingRow]) -> torch.Tensor:
        batch = collate(chosen)
        states = Sequential().states(model, batch, max(row.num_thoughts for row in chosen)).flatten(0, 1)
        return loss_of(model, states, batch.labels.flatten())

    with torch.no_grad():
        torch.testing.assert_close(
            loss([*rows, EMPTY_ROW]), torch.stack([loss([row]) for row in rows]).sum(), rtol=1e-10, atol=0
        )


def test_the_teacher_reads_the_chain_but_for_its_last_step() -> None:
    example = EncodedExample((10, 11), ((12,), (13, 14), (15,)), (16, 17, TOKENIZER.eos_id), 1)
    row = RowMaker(METHODS["coconut"], CURRICULUM, True, TOKENIZER).teacher_row(example)
    assert row == TrainingRow((10, 11, 12, 13, 14, 16, 17, TOKENIZER.eos_id), 2, 2, 0, 5)


def test_a_tokenizer_without_marks_is_refused_where_they_are_needed() -> None:
    class Plain(SymbolTokenizer):
        def thought_id(self, name: str) -> int:
            raise ValueError(f"the tokenizer has no {name}")

    plain = Plain(write_symbols(["a"]))
    with pytest.raises(ValueError, match="has no <bot>"):
        RowMaker(METHODS["coconut"], CURRICULUM, True, plain)
    assert RowMaker(METHODS["cot"], CURRICULUM, True, plain).markers == Markers()
