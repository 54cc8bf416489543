"""Variable assignment and induction copying: Python itself runs the programs, and copies are looked up word by word."""

import contextlib
import io
import re
from collections import Counter
from typing import Any

import pytest

from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example, Task


def examples(task: Task[Any], count: int) -> list[Example]:
    return [task.generate(7, number) for number in range(count)]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_programs_print_the_answer(depth: int) -> None:
    for question, steps, answer in examples(
        make_task("variable_assignment", {"depth": depth, "wording": "code"}), 1000
    ):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(question, {})
        assert output.getvalue() == f"{answer}\n"
        assert len(question.splitlines()) == 5 * (depth + 1) + 1
        assert len(steps) == depth + 1, "one assignment a level"


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_steps_lead_from_the_question_to_the_number(depth: int) -> None:
    for question, steps, answer in examples(make_task("variable_assignment", {"depth": depth}), 1000):
        *lines, query = question.split(", ")
        assert set(steps) <= set(lines)
        name = query.removesuffix("=?")
        for step in steps:
            left, right = step.split("=")
            assert left == name
            name = right
        assert name == answer


def test_the_examples_of_the_paper() -> None:
    assert make_task("variable_assignment", {"num_variables": 3}).solve("a=1, b=2, c=6, b=?") == "2"
    assert make_task("variable_assignment", {"depth": 1}).solve("a=1, b=2, c=a, d=b, d=?") == "2"


def test_only_the_chain_tells_the_numbers_apart() -> None:
    """Where the answer stands among the numbers, and where the variable asked for stands in its level, say nothing."""
    task = make_task("variable_assignment", {"depth": 2})
    places: Counter[tuple[int, int]] = Counter()
    for question, _, answer in examples(task, 5000):
        *lines, query = question.split(", ")
        numbers = [line.partition("=")[2] for line in lines[:5]]
        assert len(set(numbers)) == 5
        for start in (5, 10):
            earlier = {line.partition("=")[0] for line in lines[start - 5 : start]}
            assert {line.partition("=")[2] for line in lines[start : start + 5]} == earlier, "each is copied once"
        asked = [line.partition("=")[0] for line in lines[10:]].index(query.removesuffix("=?"))
        places[numbers.index(answer), asked] += 1
    assert len(places) == 25
    assert all(count == pytest.approx(200, abs=75) for count in places.values())


@pytest.mark.parametrize(
    ("question", "message"),
    [("a=1, c=b, c=?", "not an assignment"), ("a=1, b=?", "asks for no variable"), ("a=1, a", "asks for no variable")],
)
def test_assignments_without_a_value_are_refused(question: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task("variable_assignment", {}).solve(question)


@pytest.mark.parametrize(
    "parameters", [{}, {"num_words": 2, "num_repeated": 1}, {"num_words": 12, "num_repeated": 11, "word_length": 1}]
)
def test_the_answer_followed_the_repeated_words(parameters: dict[str, object]) -> None:
    task = make_task("induction_copying", parameters)
    size = task.parameters.num_words
    starts: Counter[int] = Counter()
    for question, steps, answer in examples(task, 2000):
        words = question.split(" ")
        sequence, repeated = words[:size], words[size:]
        assert len(set(sequence)) == size
        assert {len(word) for word in words} == {task.parameters.word_length}
        matches = [start for start in range(size) if sequence[start : start + len(repeated)] == repeated]
        assert len(matches) == 1
        assert (steps, sequence[matches[0] + len(repeated)]) == ((), answer)
        starts[matches[0]] += 1
    num_starts = size - task.parameters.num_repeated
    assert set(starts) == set(range(num_starts))
    assert all(count == pytest.approx(2000 / num_starts, rel=0.25) for count in starts.values())


def test_letters_are_uniform() -> None:
    text = "".join(re.sub(" ", "", example.question) for example in examples(make_task("induction_copying", {}), 2000))
    counts = Counter(text)
    assert len(counts) == 26
    assert all(count / len(text) == pytest.approx(1 / 26, rel=0.1) for count in counts.values())


def test_nothing_to_copy_is_refused() -> None:
    with pytest.raises(ValueError, match="last 5 words are not in it before"):
        make_task("induction_copying", {}).solve("ab cd ef gh ij kl mn op")
