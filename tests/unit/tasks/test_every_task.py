"""What holds for every task: solvers agree with generators, examples depend on nothing but their arguments, splits
share no question."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.data import SourceSection
from pretrain.data.stream.labels import IGNORED
from pretrain.data.stream.task_source import TaskSource
from pretrain.data.tokenizers.symbols import SymbolTokenizer, write_symbols
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train import train_tokenizer
from pretrain.tasks.registry import TASKS, make_task
from pretrain.tasks.task import HELD_OUT, Example, Task
from tests.support.corpus import make_texts

ROOT = Path(__file__).parents[3]
SIZES = st.integers(1, 6)


def p_hop(draw: st.DrawFn) -> dict[str, object]:
    num_hops = draw(st.integers(1, 20))
    sampling = draw(st.sampled_from(["forced", "uniform", "rooted"]))
    shortest = 2 if sampling == "uniform" else 2 * num_hops + 1
    length = draw(st.integers(shortest, shortest + 40))
    return {"num_hops": num_hops, "length": length, "alphabet_size": draw(st.integers(2, 26)), "sampling": sampling}


def i_gsm(draw: st.DrawFn) -> dict[str, object]:
    num_levels, max_width = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    return {
        "modulus": draw(st.sampled_from([3, 5, 7, 23, 97])),
        "num_levels": num_levels,
        "max_width": max_width,
        "num_edges": (num_levels - 1) * max_width + draw(st.integers(0, 10)),
        "max_terms": draw(st.integers(1, 5)),
        "constant_share": draw(st.sampled_from([0.0, 0.25, 0.5])),
        "min_needed": draw(st.integers(1, 2)),
    }


def variable_assignment(draw: st.DrawFn) -> dict[str, object]:
    depth = draw(st.integers(0, 2))
    num_variables = draw(st.integers(2, 26 // (depth + 1)))
    num_values = draw(st.integers(num_variables, 200))
    return {
        "depth": depth,
        "wording": draw(st.sampled_from(["code", "math"])),
        "num_variables": num_variables,
        "num_values": num_values,
    }


def induction_copying(draw: st.DrawFn) -> dict[str, object]:
    num_words = draw(st.integers(2, 13))
    return {"num_words": num_words, "num_repeated": draw(st.integers(1, num_words - 1)), "word_length": draw(SIZES)}


def group_composition(draw: st.DrawFn) -> dict[str, object]:
    group = draw(st.sampled_from(["symmetric", "cyclic"]))
    order = draw(st.integers(2, 5 if group == "symmetric" else 200))
    return {"group": group, "order": order, "num_elements": draw(st.integers(2, 33))}


PARAMETERS = {
    "addition": lambda draw: {
        "num_operands": draw(st.lists(st.integers(2, 40), min_size=1, max_size=3)),
        "num_digits": draw(st.integers(1, 15)),
    },
    "p_hop": p_hop,
    "i_gsm": i_gsm,
    "variable_assignment": variable_assignment,
    "induction_copying": induction_copying,
    "group_composition": group_composition,
    "group_product": lambda draw: {**group_composition(draw), "elements_per_step": draw(st.integers(1, 9))},
    "multiplication": lambda draw: {"num_left_digits": draw(SIZES), "num_right_digits": draw(SIZES)},
}
"""What draws parameters of each of the tasks that this file holds to the rules."""


@st.composite
def tasks(draw: st.DrawFn) -> Task[Any]:
    name = draw(st.sampled_from(sorted(PARAMETERS)))
    return make_task(name, PARAMETERS[name](draw))


@given(task=tasks(), seed=st.integers(0, 2**64))
@settings(deadline=None, max_examples=300)
def test_the_solver_gives_the_generators_answer(task: Task[Any], seed: int) -> None:
    for number in range(20):
        example = task.generate(seed, number)
        assert task.solve(example.question) == example.answer
        answers = task.prefix_answers(example.question)
        assert answers is None or answers[-1] == example.answer


@given(task=tasks(), seed=st.integers(0, 2**64))
@settings(deadline=None, max_examples=100)
def test_a_vocabulary_spells_every_text(task: Task[Any], seed: int) -> None:
    if task.vocabulary is None:
        return
    tokenizer = SymbolTokenizer(write_symbols(task.vocabulary))
    example = task.generate(seed, 0)
    pieces = task.render(example)
    text = "".join(piece.text for piece in pieces)
    ids = [number for piece in pieces for number in tokenizer.encode(piece.text)]
    assert (ids, tokenizer.decode(ids)) == (tokenizer.encode(text), text), "pieces give the ids of the whole"
    answers = task.prefix_answers(example.question)
    assert answers is None or len(answers) == len(tokenizer.encode(example.question)), "one answer a symbol"


@given(task=tasks(), seed=st.integers(0, 2**64))
@settings(deadline=None, max_examples=100)
def test_pieces_are_the_question_the_steps_and_the_answer(task: Task[Any], seed: int) -> None:
    example = task.generate(seed, 0)
    question, *steps, answer = task.render(example)
    assert (question.kind, question.text) == ("question", example.question + task.question_end)
    assert [(step.kind, step.text) for step in steps] == [("step", text + task.step_end) for text in example.steps]
    assert (answer.kind, answer.text) == ("answer", task.answer_start + example.answer)
    assert task.render(example, with_steps=False) == (question, answer)


PROSE = {
    "prosqa": lambda draw: {"num_nodes": draw(st.integers(8, 40)), "min_hops": 1, "max_hops": draw(st.integers(4, 8))},
    "prosqa_symbolic": lambda draw: {"num_nodes": draw(st.integers(8, 40)), "min_hops": 1},
    "prontoqa": lambda draw: {"num_hops": draw(st.integers(1, 6))},
}


def last_label(source: TaskSource, number: int) -> int:
    """Positions of an example up to its last label."""
    return 1 + int((source.sample(number)[1] != IGNORED).nonzero()[0][-1])


@pytest.fixture(scope="module")
def tokenizer_of_words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Trained on words other than those of the tasks, and with some of theirs whole."""
    texts = [make_task("prontoqa", {}).generate(0, 0).question, *make_texts(200)]
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    path.write_bytes(train_tokenizer(texts, vocab_size=400)[0])
    return Tokenizer.load(path)


@given(data=st.data(), seed=st.integers(0, 2**32), kind=st.sampled_from(["characters", "vocabulary", "words"]))
@settings(deadline=None, max_examples=150)
def test_no_example_is_longer_than_the_task_says(
    tokenizer_of_words: Tokenizer, data: st.DataObject, seed: int, kind: str
) -> None:
    every = PARAMETERS | PROSE
    name = data.draw(st.sampled_from(sorted(every)))
    parameters = data.draw(st.composite(every[name])())
    task = make_task(name, parameters)
    supervise = data.draw(st.sampled_from(["answer", "steps"]))
    characters = Tokenizer.from_bytes(write_symbols([*map(chr, range(32, 127)), "\n"]))
    own = Tokenizer.from_bytes(write_symbols(task.vocabulary)) if task.vocabulary else characters
    tokenizer = {"characters": characters, "vocabulary": own, "words": tokenizer_of_words}[kind]
    described = SourceSection(task=name, parameters=parameters, supervise=supervise)
    source = TaskSource(described, "train", seed, 100_000, tokenizer)
    longest = source.most_positions()
    assert max(last_label(source, number) for number in range(5)) <= longest
    with pytest.raises(ValueError, match=rf"task {name}: an example can take {longest} positions, more than"):
        TaskSource(described, "train", seed, longest - 1, tokenizer).require_document()
    TaskSource(described, "train", seed, longest, tokenizer).require_document()


@pytest.mark.parametrize("name", [*sorted(PARAMETERS), "prontoqa"])
def test_the_longest_is_not_much_longer_than_what_is_drawn(name: str) -> None:
    characters = Tokenizer.from_bytes(write_symbols([*map(chr, range(32, 127)), "\n"]))
    source = TaskSource(SourceSection(task=name), "train", 0, 100_000, characters)
    assert max(last_label(source, number) for number in range(200)) > 0.75 * source.most_positions()


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_seeds_numbers_and_parameters_give_other_examples(name: str) -> None:
    task, twin = make_task(name, {}), make_task(name, {})
    questions = {task.generate(seed, number).question for seed in range(10) for number in range(100)}
    assert len(questions) == 1000
    assert twin.generate(3, 7) == task.generate(3, 7)
    setting = {key: getattr(task.parameters, key) for key in type(task.parameters).model_fields}
    assert make_task(name, setting).generate(3, 7) == task.generate(3, 7), "a default may be written out"


DIGESTS = """
import hashlib
from pretrain.tasks.registry import make_task
for name in {names}:
    task = make_task(name, {{}})
    examples = [tuple(task.generate(5, number)) for number in range(50)]
    print(name, hashlib.sha256(repr(examples).encode()).hexdigest()[:16])
"""

KNOWN = {
    "addition": "1a1f5123f58ccf30",
    "group_composition": "057c427784fa84ea",
    "group_product": "58d65e8704e7eeec",
    "i_gsm": "61ea4e86eb6fccd4",
    "induction_copying": "c2cc02d17325483d",
    "multiplication": "12309a0d2cc4c86f",
    "p_hop": "d36bf5f2d14eb8f8",
    "variable_assignment": "ec1f78363a6911b9",
}
"""Hash of the first examples of seed 5. A change of it changes every run that trains on the task: say so in its
commit."""


def test_examples_are_those_of_other_processes_and_days() -> None:
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        code = DIGESTS.format(names=sorted(PARAMETERS))
        lines = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert dict(line.split() for line in lines.splitlines()) == KNOWN


def test_splits_have_their_shares_and_are_fixed() -> None:
    task = make_task("p_hop", {})
    counts = Counter(task.split_of(Example(str(number), (), "")) for number in range(40_000))
    for split in ("validation", "test"):
        assert counts[split] / 40_000 == pytest.approx(HELD_OUT, abs=0.005)
    digest = hashlib.sha256(
        " ".join(task.split_of(Example(str(number), (), "")) for number in range(1000)).encode()
    ).hexdigest()
    assert digest[:16] == "06eb1e4be37fc595"


def test_splits_share_no_question_whatever_the_seed_and_miss_none() -> None:
    task = make_task("group_composition", {"group": "cyclic", "order": 9, "num_elements": 2})
    seen = {
        split: {task.pick(split, seed, number).question for seed in (0, 1) for number in range(600)}
        for split in ("train", "validation", "test")
    }
    questions = [question for split in seen.values() for question in split]
    assert len(questions) == len(set(questions)) == 81


def mirrored(example: Example) -> Example:
    left, right = example.question.removesuffix("=").split("+" if "+" in example.question else " * ")
    sign, end = ("+", "=") if "+" in example.question else (" * ", "")
    return example._replace(question=f"{right}{sign}{left}{end}")


def renamed(example: Example) -> Example:
    """The same problem with other names and numbers, its equations in another order."""
    names = str.maketrans("ABCDEFGHI0123456", "CABFDEIGH1234560")
    *equations, query = example.question.translate(names).split(". ")
    return example._replace(question=". ".join([*reversed(equations), query]))


SMALL_I_GSM = {"num_levels": 3, "max_width": 3, "num_edges": 6}


@pytest.mark.parametrize(
    ("name", "parameters", "other"),
    [
        ("addition", {"num_operands": [2]}, mirrored),
        ("multiplication", {"num_left_digits": 2, "num_right_digits": 2}, mirrored),
        ("i_gsm", SMALL_I_GSM, renamed),
    ],
)
def test_a_problem_in_other_words_is_in_the_same_split(
    name: str, parameters: dict[str, object], other: Callable[[Example], Example]
) -> None:
    task, old = make_task(name, parameters | {"split_by": "problem"}), make_task(name, parameters)
    examples = [task.generate(0, number) for number in range(300)]
    assert examples == [old.generate(0, number) for number in range(300)], "only the split is another"
    assert all(task.split_of(example) == task.split_of(other(example)) for example in examples)
    assert {task.split_of(example) for example in examples} == {"train", "validation", "test"}
    assert any(old.split_of(example) != old.split_of(other(example)) for example in examples)


def test_no_problem_is_twice_in_a_test() -> None:
    """Of two numbers of two digits there are 5,050 problems, of which a sixteenth are in the test."""
    task = make_task("addition", {"num_operands": [2], "num_digits": 2, "split_by": "problem"})
    examples = list(task.pick_distinct("test", 0, 1000))
    problems = {task.problem(example) for example in examples}
    assert 270 < len(problems) == len(examples) < 360
    assert examples[:100] == list(task.pick_distinct("test", 0, 100))
    few = make_task("p_hop", {})
    assert list(few.pick_distinct("test", 3, 20)) == [few.pick("test", 3, number) for number in range(20)]


def test_an_example_of_a_split_can_be_made_alone() -> None:
    task = make_task("addition", {})
    listed = [task.pick("test", 3, number) for number in range(10)]
    assert task.pick("test", 3, 7) == listed[7]
    assert {task.split_of(example) for example in listed} == {"test"}


def test_a_task_too_small_to_split_says_so() -> None:
    task = make_task("group_composition", {"group": "cyclic", "order": 2, "num_elements": 2})
    with pytest.raises(ValueError, match=r"task group_composition with .*: no question in \w+: .*make it harder"):
        for split in ("train", "validation", "test"):
            task.pick(split, 0, 0)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("adition", {}, "task adition: no such task, did you mean addition?"),
        ("zzz", {}, "task zzz: no such task; there are addition, "),
        ("p_hop", {"num_hop": 3}, "task p_hop: no parameter num_hop, did you mean num_hops?"),
        ("p_hop", {"num_hops": 0}, "task p_hop: num_hops: Input should be greater than or equal to 1, got 0"),
        ("p_hop", {"num_hops": 200}, "task p_hop: length=256 is too short for num_hops=200"),
        ("p_hop", {"sampling": "force"}, "task p_hop: sampling: Input should be 'forced', 'uniform' or 'rooted'"),
        ("addition", {"num_operands": [1]}, "task addition: num_operands: a sum has at least 2 operands, got [1]"),
        ("i_gsm", {"modulus": 9}, "task i_gsm: modulus=9 is not a prime"),
        ("i_gsm", {"num_edges": 5}, "task i_gsm: num_edges=5 are too few"),
        (
            "variable_assignment",
            {"num_variables": 14, "depth": 1},
            "task variable_assignment: num_variables=14 on 2 levels",
        ),
        ("induction_copying", {"num_repeated": 10}, "task induction_copying: num_repeated=10 leaves no word to follow"),
        (
            "group_composition",
            {"order": 7},
            "task group_composition: order=7 of a symmetric group gives too many symbols",
        ),
    ],
)
def test_a_wrong_name_or_value_is_named(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^task ") as caught:
        make_task(name, parameters)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
@pytest.mark.parametrize("text", ["", "what?", "١+٢="])
def test_what_is_no_question_is_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        make_task(name, {}).solve(text)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_parameter_is_documented(task: type[Task[Any]]) -> None:
    assert all(field.description for field in task.parameters_type.model_fields.values())
