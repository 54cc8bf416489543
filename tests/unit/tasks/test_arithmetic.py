"""Addition, symbolic i-GSM, multiplication and group composition against a second way to compute each."""

import gzip
import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.tasks.multiplication import write_product
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example, Task

RELEASED = Path(__file__).parents[3].parent / "shared/data/multiplication"


def examples(task: Task[Any], count: int) -> list[Example]:
    return [task.generate(11, number) for number in range(count)]


def add_columns(operands: list[str]) -> str:
    """The sum as at school: column by column, with a carry."""
    digits, carry = [], 0
    for column in zip_longest(*map(reversed, operands), fillvalue="0"):
        carry, digit = divmod(carry + sum("0123456789".index(symbol) for symbol in column), 10)
        digits.append(str(digit))
    return (str(carry) + "".join(reversed(digits))).lstrip("0") or "0"


def test_the_sum_of_the_paper() -> None:
    assert make_task("addition", {}).solve("315+120+045+824=") == "1304"


def test_sums_are_those_of_school_and_operands_are_padded() -> None:
    task = make_task("addition", {})
    lengths = Counter()
    for question, steps, answer in examples(task, 3000):
        operands = question.removesuffix("=").split("+")
        assert {len(operand) for operand in operands} == {3}
        assert (steps, answer) == ((), add_columns(operands))
        lengths[len(operands)] += 1
    assert set(lengths) == {2, 4, 8, 16, 32}
    assert all(count == pytest.approx(600, abs=120) for count in lengths.values())


def test_operands_are_uniform() -> None:
    operands = [
        int(text) for example in examples(make_task("addition", {}), 2000) for text in example.question[:-1].split("+")
    ]
    assert fmean(operands) == pytest.approx(499.5, abs=6)
    assert (min(operands), max(operands)) == (0, 999)


def evaluate(question: str, modulus: int) -> tuple[int, int]:
    """Value of the quantity asked for and number of equations it needs, with Python's own arithmetic on a bracketed
    text."""
    *lines, query = question.removesuffix("?").split(". ")
    waiting = dict(line.split(" := ") for line in lines)
    values: dict[str, int] = {}
    needed: dict[str, set[str]] = {}
    while waiting:
        name = next(name for name, text in waiting.items() if set(re.findall(r"\w#\w", text)) <= values.keys())
        text = waiting.pop(name)
        used = re.findall(r"\w#\w", text)
        bracketed = re.sub(r"^(\d+) \* (.*)$", r"\1 * (\2)", text)
        values[name] = eval(re.sub(r"\w#\w", lambda match: str(values[match[0]]), bracketed)) % modulus
        needed[name] = {name}.union(*(needed[one] for one in used))
    return values[query], len(needed[query])


@pytest.mark.parametrize(
    "parameters",
    [{}, {"modulus": 23, "max_terms": 4}, {"num_levels": 2, "max_width": 2, "num_edges": 2, "min_needed": 1}],
)
def test_values_are_those_of_python(parameters: dict[str, object]) -> None:
    task = make_task("i_gsm", parameters)
    for question, steps, answer in examples(task, 1000):
        value, num_needed = evaluate(question, task.parameters.modulus)
        assert (str(value), num_needed) == (answer, len(steps))
        assert num_needed >= task.parameters.min_needed
        assert steps[-1].startswith(question.removesuffix("?").rpartition(". ")[2] + " = ")
        assert steps[-1].endswith(f" {answer}")


def test_a_multiplier_multiplies_the_whole_right_hand_side() -> None:
    question = "J#P := 4. H#J := 1. E#I := 4. I#N := 2 * J#P + H#J + E#I. I#N?"
    assert make_task("i_gsm", {}).solve(question) == "4", "the usual precedence would give 6"


def test_problems_are_structured_as_the_paper_says() -> None:
    task = make_task("i_gsm", {})
    templates = set()
    answers = Counter()
    for question, _, answer in examples(task, 3000):
        names = [name for name, _ in (line.split(" := ") for line in question.split(". ")[:-1])]
        levels = [("ABCDEFGHIJKLMNOP".index(name[0]) // 4, "ABCDEFGHIJKLMNOP".index(name[2]) // 4) for name in names]
        assert all(lower == upper + 1 for upper, lower in levels)
        assert {upper for upper, _ in levels} == {0, 1, 2}
        assert len(set(names)) == len(names) <= 15
        templates.add(re.sub(r"\d", "0", question))
        answers[answer] += 1
    assert len(templates) == 3000
    assert set(answers) == set("0123456")
    assert answers.most_common(1)[0][1] < 0.2 * 3000, "no answer is much better than a guess of one in seven"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("A#E := B#E. B#E := A#E. A#E?", "defined by itself"),
        ("A#E := B#E. A#E?", "B#E is not defined"),
        ("A#E := 2 - 1. A#E?", "not an equation"),
        ("A#E := 2. A#E", "asks for nothing"),
    ],
)
def test_equations_without_a_value_are_refused(question: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task("i_gsm", {}).solve(question)


def test_problems_that_are_never_hard_enough_say_so() -> None:
    task = make_task(
        "i_gsm", {"num_levels": 2, "max_width": 2, "num_edges": 2, "min_needed": 2, "constant_share": 0.9999}
    )
    with pytest.raises(ValueError, match=r"min_needed=2 equations: lower it"):
        task.generate(0, 0)


@pytest.mark.parametrize("name", ["4_by_4_valid", "4_by_4_test_bigbench", "5_by_5_valid", "5_by_5_test_bigbench"])
def test_released_lines_are_reproduced(name: str) -> None:
    path = RELEASED / f"{name}.txt.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there: the released files of the iCoT multiplication data")
    num_digits = int(name[0])
    task = make_task("multiplication", {"num_left_digits": num_digits, "num_right_digits": num_digits})
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(lines) == 1000
    for line in lines:
        question = line.partition("||")[0]
        left, right = (int(text.replace(" ", "")[::-1]) for text in question.split(" * "))
        example = write_product(left, right)
        assert "".join(piece.text for piece in task.render(example)) == line
        assert task.solve(question) == example.answer


def test_operands_have_as_many_digits_as_the_released_ones() -> None:
    task = make_task("multiplication", {"num_left_digits": 3, "num_right_digits": 2})
    for question, steps, answer in examples(task, 1000):
        left, right = (text.split(" ") for text in question.split(" * "))
        assert (len(left), len(right), len(steps), len(answer.split(" "))) == (3, 2, 2, 5)
        assert "0" not in (left[-1], right[-1])


@given(left=st.integers(1, 10**6), right=st.integers(1, 10**6))
def test_terms_add_up_to_the_product(left: int, right: int) -> None:
    example = write_product(left, right)
    terms = [step.removeprefix("+ ").partition(" (")[0].replace(" ", "")[::-1] for step in example.steps]
    sums = [match[1].replace(" ", "")[::-1] for step in example.steps if (match := re.search(r"\( (.*) \)", step))]
    assert sum(map(int, terms)) == left * right == int(example.answer.replace(" ", "")[::-1])
    assert [int(text) for text in sums] == [sum(map(int, terms[: place + 2])) for place in range(len(sums))]


def compose_in_pairs(elements: list[tuple[int, ...]]) -> tuple[tuple[int, ...], int]:
    """The product by the theorem's way, neighbours first, and the rounds it takes."""
    rounds = 0
    while len(elements) > 1:
        pairs = [(elements[place], elements[place + 1]) for place in range(0, len(elements) - 1, 2)]
        rest = elements[len(pairs) * 2 :]
        elements = [tuple(first[image - 1] for image in second) for first, second in pairs] + rest
        rounds += 1
    return elements[0], rounds


@pytest.mark.parametrize("num_elements", [2, 3, 16, 33])
def test_permutations_are_composed_in_logarithmically_many_rounds(num_elements: int) -> None:
    task = make_task("group_composition", {"num_elements": num_elements})
    for question, steps, answer in examples(task, 500):
        elements = [tuple(map(int, name)) for name in re.findall(r"\[(\d+)\]", question)]
        product, rounds = compose_in_pairs(elements)
        assert "[" + "".join(map(str, product)) + "]" == answer
        assert rounds == (num_elements - 1).bit_length(), "the logarithm, rounded up"
        assert task.prefix_answers(question) == (question[:7], *steps, answer)


@pytest.mark.parametrize(("each", "places"), [(1, [2, 3, 4, 5, 6, 7, 8]), (2, [3, 5, 7]), (4, [5]), (8, [])])
def test_steps_of_a_product_multiply_as_many_elements_as_they_are_told(each: int, places: list[int]) -> None:
    task = make_task("group_product", {"order": 4, "num_elements": 9, "elements_per_step": each})
    for question, steps, answer in examples(task, 100):
        assert steps == tuple(task.prefix_answers(question)[place - 1] for place in places)
        assert task.solve(question) == answer
    spans = task.render(examples(task, 1)[0], with_steps=True)
    assert spans[-1].text.startswith("=") and len(spans) == len(places) + 2


def test_products_of_permutations_depend_on_the_order_and_apply_the_last_first() -> None:
    task = make_task("group_composition", {"order": 3, "num_elements": 2})
    assert task.solve("[213][132]") == "[231]", "1 goes to 1, then to 2"
    assert task.solve("[132][213]") == "[312]"


def test_cyclic_groups_add() -> None:
    task = make_task("group_composition", {"group": "cyclic", "order": 60, "num_elements": 8})
    assert len(task.vocabulary) == 60
    for question, _, answer in examples(task, 500):
        assert answer == f"[{sum(map(int, re.findall(r'[0-9]+', question))) % 60}]"


def test_the_answers_of_a_group_are_uniform() -> None:
    counts = Counter(example.answer for example in examples(make_task("group_composition", {"order": 3}), 3000))
    assert len(counts) == 6
    assert all(count == pytest.approx(500, abs=110) for count in counts.values())
