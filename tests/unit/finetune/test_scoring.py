"""Scoring: exact match by hand, sums of shares, rows and their file; FLOPs of answers against torch's own counter."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.answers.results import (
    Cell,
    CoconutRow,
    ScoredRun,
    key_of,
    standard_error,
)
from finetune.answers.scoring import Answerer, Tally, answer_settings, is_right, stated_answer
from finetune.config import FinetuneConfig
from finetune.examples.examples import ExampleSet, TextForm, encode_examples
from finetune.latent.generation import Answer, AnswerSettings, answer_flops, generate_with_thoughts
from finetune.latent.sequential import Sequential
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import Tokens
from finetune.method.markers import Markers
from pretrain.data.tokenizers.symbols import SymbolTokenizer, write_symbols
from pretrain.model.config import ModelSection
from pretrain.rows.identity import RunIdentity
from pretrain.rows.jsonl import JsonLines
from pretrain.tasks.task import Example
from tests.unit.finetune.test_generation import how
from tests.unit.generation.test_sampling import make_model

TOKENIZER = SymbolTokenizer(write_symbols([*"abcdefghij0123456789#.,>\n "]))
EXAMPLES = [
    Example("a", ("b", "c"), "1"),
    Example("abc", ("b",), "2"),
    Example("bb", (), "3"),
    Example("cabd", ("b", "c"), "4"),
]
ENCODED = encode_examples(EXAMPLES, TextForm(), TOKENIZER, "data.test")
QUESTIONS = ExampleSet(examples=EXAMPLES, encoded=ENCODED, form=TextForm())


def answerer(batch: int, **changes: Any) -> Answerer:
    """Two thoughts, at most three tokens of text, a model with random weights."""
    base = {
        "max_new_tokens": 3, "vocab_size": TOKENIZER.vocab_size, "eos_id": TOKENIZER.eos_id, "num_slots": 2,
        "thinking": Sequential(), "markers": Markers((TOKENIZER.bot_id,), TOKENIZER.latent_id, (TOKENIZER.eot_id,)),
    }  # fmt: skip
    return Answerer(model=make_model(), tokenizer=TOKENIZER, settings=AnswerSettings(**(base | changes)), batch=batch)


def config(**sections: Any) -> FinetuneConfig:
    tasks = {"train": {"task": "prosqa", "num_examples": 1}, "validation": {"task": "prosqa", "num_examples": 1}}
    base = {"data": tasks | {"tokenizer": "symbols:ab"}, "train": {"seq_len": 64}}
    return FinetuneConfig.model_validate(base | sections)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("### Tom is a lempus.", "Tom is a lempus.", True),
        ("Tom is a rempus.\nEvery rempus is a lempus.\n### Tom is a lempus.", "Tom is a lempus.", True),
        ("### Tom is a rempus.\n### Tom is a lempus.", "Tom is a lempus.", True),
        ("### Tom is a lempus", "Tom is a lempus.", False),
        ("### Tom is a  lempus.", "Tom is a lempus.", False),
        ("### tom is a lempus.", "Tom is a lempus.", False),
        ("### 1,234", "1234", True),
        ("#### 1234 ", "1,234", True),
        ("1234", "1234", True),
        ("it is 1234", "1234", False),
        ("", "1234", False),
        ("### ", "1234", False),
    ],
)
def test_an_answer_is_right_if_it_is_the_wanted_one_exactly(text: str, answer: str, right: bool) -> None:
    assert is_right(text, answer, TextForm()) is right


def test_the_mark_of_an_answer_is_that_of_the_form() -> None:
    symbolic = TextForm(answer_start="=")
    assert stated_answer("ab,bc,=Ac", symbolic) == "Ac"
    assert is_right("ab,=Ab=Ac", "Ac", symbolic)
    assert not is_right("ab,#Ac", "Ac", symbolic)
    assert stated_answer("Ac", TextForm(answer_start="")) == "Ac"


def test_tallies_of_shares_add_up_to_that_of_the_whole() -> None:
    ours = answerer(batch=2)
    whole, parts = ours.score(QUESTIONS), ours.score(QUESTIONS.part(0, 1)) + ours.score(QUESTIONS.part(1, 4))
    assert whole.num_examples == parts.num_examples == {0: 1, 1: 1, 2: 2}
    assert (whole.right, whole.num_text_tokens, whole.flops) == (parts.right, parts.num_text_tokens, parts.flops)
    assert whole.num_thoughts == parts.num_thoughts == 8
    assert whole.seconds > 0
    assert Tally() + whole == whole


def test_right_answers_are_counted_under_the_length_of_their_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"a": "### 1", "abc": "### 9", "bb": "3", "cabd": "b\n### 4"}

    def answer(_: Any, prompts: list[tuple[int, ...]], *__: Any, **___: Any) -> list[Answer]:
        questions = [TOKENIZER.decode(prompt).strip() for prompt in prompts]
        return [Answer(text=TOKENIZER.encode(texts[question]), num_thoughts=1, is_over=True) for question in questions]

    monkeypatch.setattr("finetune.answers.scoring.generate_with_thoughts", answer)
    tally = answerer(batch=3, max_new_tokens=9, num_slots=1).score(QUESTIONS)
    assert (tally.right, tally.num_examples) == ({0: 1, 1: 0, 2: 2}, {0: 1, 1: 1, 2: 2})
    assert (tally.accuracy, tally.num_thoughts, tally.num_text_tokens) == (0.75, 4, 5 + 5 + 1 + 7)
    row = CoconutRow.of_tally(
        tally, Cell(1, 1), ScoredRun("x", 5, 2, 1, "coconut", "test"), RunIdentity(), ModelSection()
    )
    assert row.accuracy_by_chain_length == {"0": 1.0, "1": 0.0, "2": 1.0}
    assert (row.new_tokens, row.mean_thoughts, row.num_examples) == (5.5, 1.0, 4)


def test_answers_keep_the_order_of_the_examples_in_every_batch_size() -> None:
    one = answerer(batch=1, max_new_tokens=4, eos_id=-2)
    wanted = [generate_with_thoughts(one.model, [prompt], one.settings)[0] for prompt in one.prompts(ENCODED)]
    for batch in (1, 3, 9):
        assert replace(one, batch=batch).answer(ENCODED) == wanted


@pytest.mark.parametrize(
    ("name", "curriculum", "stage", "slots", "num_slots"),
    [
        ("coconut", {}, None, "thought", 6),
        ("coconut", {"thoughts_per_step": 2, "num_stages": 3}, 4, "thought", 6),
        ("coconut", {"thoughts_per_step": 2, "num_stages": 3}, 2, "thought", 4),
        ("coconut", {"thoughts_per_step": 0}, None, "none", 0),
        ("coconut", {}, 0, "thought", 0),
        ("pause_as_thought", {}, None, "pause", 6),
        ("cot", {}, None, "none", 0),
        ("without_thought", {}, None, "none", 0),
    ],
)
def test_a_stage_says_how_its_method_answers(
    name: str, curriculum: dict, stage: int | None, slots: str, num_slots: int
) -> None:
    settings = answer_settings(config(method={"name": name}, curriculum=curriculum), TOKENIZER, stage=stage)
    assert settings.num_slots == num_slots
    if slots == "none":
        assert settings.markers == Markers() and isinstance(settings.way, Tokens)
    else:
        slot, thinking = (TOKENIZER.pause_id, Tokens) if slots == "pause" else (TOKENIZER.latent_id, Sequential)
        assert settings.markers == Markers((TOKENIZER.bot_id,), slot, (TOKENIZER.eot_id,))
        assert isinstance(settings.thinking, thinking)


def test_a_first_stage_without_markers_answers_without_them_also_when_no_thoughts_are_asked_for() -> None:
    plain = config(method={"name": "coconut", "markers_in_first_stage": False})
    assert answer_settings(plain, TOKENIZER, stage=0).markers == Markers()
    assert answer_settings(plain, TOKENIZER, num_slots=0).markers == Markers()
    assert answer_settings(plain, TOKENIZER, stage=0, num_slots=1).script == (TOKENIZER.eot_id,)
    assert answer_settings(plain, TOKENIZER, stage=1).num_slots == 1
    with pytest.raises(ValueError, match="num_slots=3: this method has no slots"):
        answer_settings(config(method={"name": "cot"}), TOKENIZER, num_slots=3)


@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize(
    ("slots", "num_slots", "is_stopped", "jacobi_passes"),
    [
        *(
            ("thought", 0, False, None),
            ("thought", 1, False, None),
            ("thought", 5, False, None),
            ("thought", 4, True, None),
        ),
        *(
            ("pause", 3, False, None),
            ("none", 0, False, None),
            ("thought", 4, False, 2),
            ("thought", 4, False, 9),
            ("thought", 1, False, 1),
            ("thought", 4, True, 2),
        ),
    ],
)
def test_flops_of_an_answer_are_those_that_torch_counts(
    slots: str, num_slots: int, is_stopped: bool, jacobi_passes: int | None, num_loops: int
) -> None:
    """Two rows of one length; in the unfused kernel, attention is what torch sees on a CPU."""
    model = make_model()
    settings = how(
        slots, jacobi_passes, max_new_tokens=6, vocab_size=50, eos_id=-2, num_slots=num_slots, num_loops=num_loops
    )
    classifier = None
    if is_stopped:
        classifier = StopClassifier(model.config.hidden_size).double()
        nn.init.constant_(classifier.bias, -1.0)
    prompts = [[7, 8, 9, 10, 11], [12, 13, 14, 15, 16]]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        answers = generate_with_thoughts(model, prompts, settings, stop_classifier=classifier)
    counted = 2 * answer_flops(model.config, 5, settings, answers[0], is_stopped=is_stopped)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)


def test_an_answer_that_ends_costs_less_than_one_that_goes_on() -> None:
    model, settings = make_model().config, AnswerSettings(max_new_tokens=6, vocab_size=50, eos_id=2)
    flops = [
        answer_flops(model, 10, settings, Answer(text=[5] * length, is_over=is_over))
        for length, is_over in ((3, True), (4, False), (5, False))
    ]
    assert flops[0] == flops[1] < flops[2]  # eos is chosen as a token is, and neither goes through the model at the end


def make_row(**changes: Any) -> CoconutRow:
    tally = Tally(
        right=Counter({2: 3}), num_examples=Counter({2: 4}), num_thoughts=8, num_text_tokens=12, seconds=2.0, flops=400
    )
    return replace(
        CoconutRow.of_tally(
            tally, Cell(2, 1), ScoredRun("x", 7, 2, 1, "coconut", "test"), RunIdentity(), ModelSection()
        ),
        **changes,
    )


def test_rows_come_back_from_their_file_and_tell_what_was_counted(tmp_path: Path) -> None:
    file, rows = JsonLines(tmp_path / "coconut.jsonl"), [make_row(num_thoughts=number) for number in range(3)]
    file.append(rows)
    assert file.read(CoconutRow, strict=True) == rows
    assert len({key_of(row) for row in rows}) == 3
    assert (rows[0].accuracy, rows[0].new_tokens, rows[0].seconds_per_example, rows[0].flops_per_example) == (
        0.75,
        5.0,
        0.5,
        100.0,
    )


def test_the_error_is_that_of_a_share_and_never_nothing() -> None:
    assert standard_error(5000, 10000) == pytest.approx(0.005, rel=1e-3)
    assert standard_error(100, 100) == standard_error(0, 100) == pytest.approx(0.5 / 101)


def test_the_question_gets_its_marker_only_where_there_are_markers() -> None:
    question = ENCODED[0].question
    assert answerer(batch=1).prompts(ENCODED)[0] == (*question, TOKENIZER.bot_id)
    assert answerer(batch=1, markers=Markers(), num_slots=0).prompts(ENCODED)[0] == question
