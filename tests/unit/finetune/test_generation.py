"""Answers with latent thoughts against their definition: whole passes over one row alone, without cache, padding or
batch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.examples.examples import EncodedExample
from finetune.examples.sequence import RowMaker, collate
from finetune.latent.generation import Answer, AnswerSettings, generate_with_thoughts
from finetune.latent.jacobi import Jacobi
from finetune.latent.sequential import Sequential
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import Tokens
from finetune.method.curriculum import CurriculumSection, Cut
from finetune.method.markers import Markers
from finetune.method.methods import METHODS
from pretrain.data.tokenizers.symbols import SymbolTokenizer, write_symbols
from pretrain.model.gpt import LoopedGPT
from tests.support.loop_designs import MODELS
from tests.unit.generation.test_sampling import make_model
from tests.unit.model.test_model import LLAMA, build

VOCAB, EOS, BOT, EOT, PAUSE, LATENT = 61, 3, 4, 5, 6, 7
MARKERS = {
    "thought": Markers((BOT,), LATENT, (EOT,)), "pause": Markers((BOT,), PAUSE, (EOT,)), "none": Markers(),
}  # fmt: skip
PROMPTS = [[2, 10, 11, 12, 13, 14, 15, BOT], [2, BOT], [2, 30, 31, BOT], [2, 40, 41, 42, 43, 44, 45, BOT]]
families = pytest.mark.parametrize("family", ["llama", "gpt2"])


def how(slots: str = "thought", jacobi_passes: int | None = None, **changes: Any) -> AnswerSettings:
    thoughts = Sequential() if jacobi_passes is None else Jacobi(jacobi_passes)
    base = {
        "max_new_tokens": 6, "vocab_size": VOCAB, "eos_id": EOS, "markers": MARKERS[slots],
        "thinking": thoughts if slots == "thought" else Tokens(),
    }  # fmt: skip
    return AnswerSettings(**(base | changes))


@torch.no_grad()
def by_definition(
    model: LoopedGPT, prompt: Sequence[int], settings: AnswerSettings, classifier: StopClassifier | None = None
) -> tuple[Answer, Tensor]:
    """The answer to one prompt by whole passes over all inputs so far, and the inputs at its thoughts."""
    assert model.embedding is not None

    def embed(*tokens: int) -> Tensor:
        return model.embedding(torch.tensor([tokens], dtype=torch.int64))  # type: ignore[misc]

    def last(inputs: Tensor) -> Tensor:
        return model(torch.zeros(inputs.shape[:2], dtype=torch.int64), settings.num_loops, embeddings=inputs)[-1:]

    inputs, answer, thoughts = embed(*prompt), Answer(), []
    has_thoughts = not isinstance(settings.thinking, Tokens)
    while has_thoughts and answer.num_thoughts < settings.num_slots:
        thoughts.append(last(inputs))
        inputs = torch.cat((inputs, thoughts[-1][None]), dim=1)
        answer.num_thoughts += 1
        if classifier is not None and classifier(last(inputs)).sigmoid() > 0.5:
            break
    pauses = [] if has_thoughts else [settings.markers.slot] * settings.num_slots
    inputs = torch.cat((inputs, embed(*pauses, *settings.markers.after, *settings.forced_text)), dim=1)
    while len(answer.text) < settings.max_new_tokens:
        logits = model.all_logits(last(inputs))[0, : settings.vocab_size]
        logits[list(settings.markers.after)] = -torch.inf
        token = int(logits.argmax())
        if token == settings.eos_id:
            answer.is_over = True
            break
        answer.text.append(token)
        inputs = torch.cat((inputs, embed(token)), dim=1)
    return answer, torch.cat(thoughts) if thoughts else inputs[0, :0]


@families
@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize(
    ("slots", "num_thoughts"), [("thought", 0), ("thought", 1), ("thought", 4), ("pause", 0), ("pause", 3), ("none", 0)]
)
def test_a_batch_gives_what_whole_passes_over_each_row_give(
    family: str, num_loops: int, slots: str, num_thoughts: int
) -> None:
    model, settings = make_model(family), how(slots=slots, num_slots=num_thoughts, num_loops=num_loops)
    wanted = [by_definition(model, prompt, settings)[0] for prompt in PROMPTS]
    assert generate_with_thoughts(model, PROMPTS, settings) == wanted
    assert len({tuple(answer.text) for answer in wanted}) > 1
    for prompt, answer in zip(PROMPTS, wanted, strict=True):
        assert generate_with_thoughts(model, [prompt], settings) == [answer]


def test_thoughts_pauses_loops_and_forced_text_change_the_answers() -> None:
    model = make_model()
    changes = [
        {},
        {"num_slots": 1},
        {"num_slots": 2},
        {"slots": "pause", "num_slots": 2},
        {"num_loops": 3},
        {"forced_text": (9,)},
    ]
    texts = [
        str([answer.text for answer in generate_with_thoughts(model, PROMPTS, how(**change))]) for change in changes
    ]
    assert len(set(texts)) == len(changes)


@families
def test_forced_text_stands_before_the_answer(family: str) -> None:
    model, settings = make_model(family), how(num_slots=2, forced_text=(9, 17))
    assert generate_with_thoughts(model, PROMPTS, settings) == [
        by_definition(model, prompt, settings)[0] for prompt in PROMPTS
    ]


def stopper(model: LoopedGPT, bias: float) -> StopClassifier:
    """A classifier with weights by chance; the bias moves where rows stop."""
    classifier = StopClassifier(model.config.hidden_size).double()
    with torch.no_grad():
        classifier.weight.copy_(torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(3)))
        classifier.bias.fill_(bias)
    return classifier


@families
@pytest.mark.parametrize("num_loops", [1, 3])
def test_rows_that_stop_early_go_on_with_text_while_others_think(family: str, num_loops: int) -> None:
    model, settings = make_model(family), how(num_slots=5, num_loops=num_loops)
    stops = set()
    for bias in (-4.0, -2.0, 0.0):
        classifier = stopper(model, bias)
        wanted = [by_definition(model, prompt, settings, classifier)[0] for prompt in PROMPTS]
        assert generate_with_thoughts(model, PROMPTS, settings, stop_classifier=classifier) == wanted
        stops.add(tuple(answer.num_thoughts for answer in wanted))
    assert any(len(set(stop)) > 1 for stop in stops)


def test_a_classifier_that_never_stops_gives_the_fixed_number_and_one_that_always_does_gives_one_thought() -> None:
    model = make_model()
    for bias, num_thoughts in ((-1e3, 4), (1e3, 1)):
        wanted = generate_with_thoughts(model, PROMPTS, how(num_slots=num_thoughts))
        assert generate_with_thoughts(model, PROMPTS, how(num_slots=4), stop_classifier=stopper(model, bias)) == wanted
    none = generate_with_thoughts(model, PROMPTS, how(num_slots=0), stop_classifier=stopper(model, 1e3))
    assert none == generate_with_thoughts(model, PROMPTS, how(num_slots=0))


def test_rows_end_at_eos_and_go_through_the_model_no_more() -> None:
    model, passes = make_model(), []
    free = generate_with_thoughts(model, PROMPTS, how(eos_id=-2, num_slots=2))
    eos = free[0].text[2]
    ended = generate_with_thoughts(model, PROMPTS, how(eos_id=eos, num_slots=2))
    for answer, whole in zip(ended, free, strict=True):
        assert answer.is_over == (eos in whole.text)
        assert answer.text == (whole.text[: whole.text.index(eos)] if answer.is_over else whole.text)
        assert answer.num_thoughts == 2
    with model.prelude["0"].register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0]))):
        assert generate_with_thoughts(model, PROMPTS[:1], how(eos_id=eos, num_slots=2)) == ended[:1]
        # the prompt, one thought, the other with <eot>, and each token of the text; eos goes through the model no more
        assert passes == [len(PROMPTS[0]), 1, 2, *[1] * len(ended[0].text)]
        passes.clear()
        assert generate_with_thoughts(model, PROMPTS, how(eos_id=eos, num_slots=2)) == ended
    inputs = [len(answer.text) - (not answer.is_over) for answer in ended]  # the last token there may be is none
    assert len(set(inputs)) > 1
    assert passes[3:] == [sum(place < number for number in inputs) for place in range(max(inputs))]


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_end_leave_the_others_what_they_are_in_every_design_of_the_loop(name: str) -> None:
    """Rows have unlike prompts, thoughts (some are given up) and texts, so those that go on move in the cache."""
    model = build(LLAMA, num_prelude_layers=1, num_coda_layers=1, num_loops=3, **MODELS[name])
    classifier = stopper(model, -2.0)
    free = generate_with_thoughts(model, PROMPTS, how(num_slots=3, eos_id=-2), stop_classifier=classifier)
    settings = how(num_slots=3, eos_id=free[0].text[1])
    wanted = [by_definition(model, prompt, settings, classifier)[0] for prompt in PROMPTS]
    assert wanted[0].is_over and len({len(answer.text) for answer in wanted}) > 1
    assert generate_with_thoughts(model, PROMPTS, settings, stop_classifier=classifier) == wanted


def test_neither_the_marker_nor_rows_beyond_the_tokenizer_are_chosen() -> None:
    model = make_model()
    assert model.head is not None
    with torch.no_grad():
        model.get_parameter("head.weight")[EOT] = 100 * model.get_parameter("head.weight")[10]
        model.get_parameter("head.weight")[VOCAB:] = -100 * model.get_parameter("head.weight")[10]
    tokens = [
        token for answer in generate_with_thoughts(model, PROMPTS, how(max_new_tokens=20)) for token in answer.text
    ]
    assert EOT not in tokens
    assert max(tokens) < VOCAB


@families
@pytest.mark.parametrize("name", ["coconut", "pause_as_thought", "without_thought"])
def test_answers_are_what_the_training_forward_predicts(family: str, name: Any) -> None:
    """Teacher-forced: the likeliest token after each position of the text, by the forward and the rows of training."""
    model, method = make_model(family), METHODS[name]
    tokenizer = SymbolTokenizer(write_symbols([chr(97 + number) for number in range(26)]))
    maker = RowMaker(method, CurriculumSection(), True, tokenizer)
    questions = [(7, 8, 9), (10,), (11, 12, 13, 14, 15)]
    num_slots = 3 if method.slots else 0
    settings = AnswerSettings(
        max_new_tokens=5, vocab_size=tokenizer.vocab_size, eos_id=-2, markers=maker.markers, num_slots=num_slots,
        thinking=Sequential() if method.has_thoughts else Tokens(), num_loops=2,
    )  # fmt: skip
    answers = generate_with_thoughts(model, [maker.markers.prompt(question) for question in questions], settings)
    rows = [
        maker.row(EncodedExample(question, (), tuple(answer.text)), Cut(0, num_slots))
        for question, answer in zip(questions, answers, strict=True)
    ]
    batch = collate(rows)
    with torch.no_grad():
        states = settings.thinking.states(model, batch, max(row.num_thoughts for row in rows), 2)
        logits = model.all_logits(states.flatten(0, 1))
    if num_slots:
        logits[:, tokenizer.eot_id] = -torch.inf
    predicted = logits[batch.supervised, : tokenizer.vocab_size].argmax(-1)
    assert predicted.tolist() == batch.labels.flatten()[batch.supervised].tolist()
    assert predicted.tolist() == [token for answer in answers for token in answer.text]


@families
@pytest.mark.parametrize("num_passes", [0, 1, 2])
def test_answers_with_jacobi_thoughts_are_what_their_training_forward_predicts(family: str, num_passes: int) -> None:
    model, tokenizer = make_model(family), SymbolTokenizer(write_symbols([chr(97 + number) for number in range(26)]))
    maker = RowMaker(METHODS["coconut"], CurriculumSection(), True, tokenizer)
    settings = how(
        num_slots=4, eos_id=-2, vocab_size=tokenizer.vocab_size, markers=maker.markers, num_loops=2,
        jacobi_passes=num_passes,
    )  # fmt: skip
    questions = [(7, 8, 9), (10,), (11, 12, 13, 14, 15)]
    answers = generate_with_thoughts(model, [maker.markers.prompt(question) for question in questions], settings)
    rows = [
        maker.row(EncodedExample(question, (), tuple(answer.text)), Cut(0, 4))
        for question, answer in zip(questions, answers, strict=True)
    ]
    batch = collate(rows)
    with torch.no_grad():
        logits = model.all_logits(Jacobi(num_passes).states(model, batch, 4, 2).flatten(0, 1))
    logits[:, tokenizer.eot_id] = -torch.inf
    assert logits[batch.supervised, : tokenizer.vocab_size].argmax(-1).tolist() == [
        token for answer in answers for token in answer.text
    ]


@families
def test_enough_jacobi_passes_are_the_thoughts_one_after_the_other(family: str) -> None:
    model = make_model(family)
    wanted = generate_with_thoughts(model, PROMPTS, how(num_slots=4, num_loops=2))
    for num_passes in (3, 7):
        settings = how(num_slots=4, num_loops=2, jacobi_passes=num_passes)
        assert generate_with_thoughts(model, PROMPTS, settings) == wanted
    fewer = generate_with_thoughts(model, PROMPTS, how(num_slots=4, num_loops=2, jacobi_passes=0))
    assert fewer != wanted


@pytest.mark.parametrize(
    ("prompts", "changes", "family", "message"),
    [
        ([[1], []], {}, "llama", "prompt 1 has no token"),
        ([[1] * 55], {"num_slots": 4}, "gpt2", "may have 65 tokens, but the model learned 64 positions"),
    ],
)
def test_bad_prompts_are_named(prompts: list[list[int]], changes: dict[str, Any], family: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_with_thoughts(make_model(family), prompts, how(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_slots": -1}, "num_slots=-1"),
        ({"slots": "none", "num_slots": 2}, "num_slots=2: this method has no slots"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        how(**changes)


@families
@pytest.mark.parametrize("num_passes", [1, 4])
def test_a_classifier_chooses_the_last_of_jacobi_thoughts(family: str, num_passes: int) -> None:
    """A row whose last thought is the n-th is the row of n Jacobi thoughts: those after it have no part in them."""
    model, stops = make_model(family), set()
    fixed = {
        count: generate_with_thoughts(model, PROMPTS, how(num_slots=count, num_loops=2, jacobi_passes=num_passes))
        for count in range(1, 5)
    }
    settings = how(num_slots=4, num_loops=2, jacobi_passes=num_passes)
    for bias in (-1e3, -4.0, -2.0, 0.0, 1e3):
        answers = generate_with_thoughts(model, PROMPTS, settings, stop_classifier=stopper(model, bias))
        assert answers == [fixed[answer.num_thoughts][row] for row, answer in enumerate(answers)]
        stops.add(tuple(answer.num_thoughts for answer in answers))
    assert {(4, 4, 4, 4), (1, 1, 1, 1)} < stops
    assert any(len(set(stop)) > 1 for stop in stops)
    if num_passes == 4:  # as many as make them the thoughts one after the other
        one_by_one = how(num_slots=4, num_loops=2)
        for bias in (-4.0, -2.0, 0.0):
            classifier = stopper(model, bias)
            wanted = generate_with_thoughts(model, PROMPTS, one_by_one, stop_classifier=classifier)
            assert generate_with_thoughts(model, PROMPTS, settings, stop_classifier=classifier) == wanted


def test_a_classifier_without_thoughts_has_nothing_to_do() -> None:
    model = make_model()
    for settings in (how(slots="pause", num_slots=2), how(slots="none"), how(num_slots=0)):
        plain = generate_with_thoughts(model, PROMPTS, settings)
        assert generate_with_thoughts(model, PROMPTS, settings, stop_classifier=stopper(model, 1e3)) == plain
