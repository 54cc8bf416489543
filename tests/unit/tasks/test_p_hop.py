"""p-hop induction: the definition, followed to the letter, and the distributions of both ways to draw."""

from collections import Counter
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Task


def find(sequence: str, num_hops: int) -> int:
    """find_p(n) by the definition, places counted from 1."""
    place = len(sequence)
    for _ in range(num_hops):
        candidates = [j for j in range(2, place + 1) if sequence[j - 2] == sequence[place - 1]] if place else []
        place = max([0, *candidates])
    return place


def root(sequence: str) -> tuple[int, int]:
    """By the definition: the place from which no hop leads on, and the number of hops there; a place that leads to
    itself leads nowhere."""
    place, hops = len(sequence), 0
    while (before := find(sequence[:place], 1)) not in (0, place):
        place, hops = before, hops + 1
    return (0, 0) if before == place else (place, hops)


def distances(task: Task[Any], num_examples: int) -> list[int]:
    """How far back the answers of a task stand, by the definition; 0 hops found are an error."""
    found = []
    for number in range(num_examples):
        question, _, answer = task.generate(0, number)
        place = find(question, task.parameters.num_hops)
        assert place, "a hop is missing"
        assert question[place - 1] == answer
        found.append(len(question) - place)
    return found


@given(sequence=st.text("abc", min_size=1, max_size=40), num_hops=st.integers(1, 9))
def test_answers_are_those_of_the_definition(sequence: str, num_hops: int) -> None:
    task = make_task("p_hop", {"num_hops": num_hops, "sampling": "uniform"})
    places = [find(sequence[:end], num_hops) for end in range(1, len(sequence) + 1)]
    answers = tuple(sequence[place - 1] if place else None for place in places)
    assert task.prefix_answers(sequence) == answers
    if answers[-1] is None:
        with pytest.raises(ValueError, match="fewer than"):
            task.solve(sequence)
    else:
        assert task.solve(sequence) == answers[-1]


def test_the_definitions_own_examples() -> None:
    one_hop = make_task("p_hop", {"num_hops": 1, "sampling": "uniform"})
    assert one_hop.solve("abcab") == "c", "the symbol after the previous occurrence"
    assert one_hop.solve("bccaa") == "a", "a symbol after itself stays"
    assert make_task("p_hop", {"num_hops": 2, "sampling": "uniform"}).solve("cabcab") == "a", "b, c, a"


@given(sequence=st.text("abcd", min_size=1, max_size=40), num_hops=st.integers(1, 9))
def test_rooted_answers_are_where_hops_end_if_that_many_lead_there(sequence: str, num_hops: int) -> None:
    task = make_task("p_hop", {"num_hops": num_hops, "sampling": "rooted"})
    ends = [root(sequence[:end]) for end in range(1, len(sequence) + 1)]
    answers = tuple(sequence[place - 1] if place and hops <= num_hops else None for place, hops in ends)
    assert task.prefix_answers(sequence) == answers
    if answers[-1] is None:
        with pytest.raises(ValueError, match="more than"):
            task.solve(sequence)
    else:
        assert task.solve(sequence) == answers[-1]


@pytest.mark.parametrize(("num_hops", "length", "size"), [(1, 3, 2), (2, 24, 6), (6, 24, 6), (6, 13, 2), (20, 60, 26)])
def test_rooted_questions_have_their_hops_and_no_more(num_hops: int, length: int, size: int) -> None:
    parameters = {"num_hops": num_hops, "length": length, "alphabet_size": size, "sampling": "rooted"}
    task = make_task("p_hop", parameters)
    for number in range(300):
        question, _, answer = task.generate(0, number)
        place, hops = root(question)
        assert (len(question), hops, question[place - 1]) == (length, num_hops, answer)
        assert answer not in question[: place - 1]
    if length > 2 * num_hops + 1:  # there is room between the hops
        found = distances(task, 1000)
        fillers = length - 2 * num_hops - 1
        assert fmean(found) == pytest.approx(2 * num_hops - 1 + fillers * num_hops / (num_hops + 1), rel=0.03)


def test_a_rooted_question_tells_its_number_of_hops_to_whoever_asks_more() -> None:
    """One rule for any p: the answer of p hops is that of a task that allows more."""
    ask = {"length": 24, "alphabet_size": 6, "sampling": "rooted"}
    two, six = (make_task("p_hop", {"num_hops": hops, **ask}) for hops in (2, 6))
    for number in range(200):
        example = two.generate(0, number)
        assert six.solve(example.question) == example.answer
        with pytest.raises(ValueError, match="more than 2 hops"):
            two.solve(six.generate(0, number).question)


@pytest.mark.parametrize("num_hops", [16, 32])
def test_uniform_sequences_reach_back_three_places_a_hop(num_hops: int) -> None:
    """For n = 256 and 4 symbols: 48 places for 16 hops, 96 for 32. A quarter stays at the end, the others go 4 places a
    hop."""
    found = distances(make_task("p_hop", {"num_hops": num_hops, "sampling": "uniform"}), 1500)
    assert fmean(found) == pytest.approx(3 * num_hops, rel=0.08)
    assert found.count(0) / len(found) == pytest.approx(0.25, abs=0.05)
    assert fmean(distance for distance in found if distance) == pytest.approx(4 * num_hops, rel=0.03)


def test_uniform_sequences_of_256_have_64_hops_in_62_of_100() -> None:
    task = make_task("p_hop", {"num_hops": 64, "length": 320, "sampling": "uniform"})
    ends = [task.generate(0, number).question[-256:] for number in range(1500)]
    # 320 symbols nearly always have the hops, so that their last 256 are free of the condition.
    assert sum(find(end, 64) > 0 for end in ends) / len(ends) == pytest.approx(0.62, abs=0.06)


@pytest.mark.parametrize(("num_hops", "length"), [(16, 256), (32, 256), (1, 3), (20, 41)])
def test_forced_hops_span_the_sequence(num_hops: int, length: int) -> None:
    found = distances(make_task("p_hop", {"num_hops": num_hops, "length": length}), 1000)
    fillers = length - 2 * num_hops - 1
    assert fmean(found) == pytest.approx(2 * num_hops - 1 + fillers * num_hops / (num_hops + 1), rel=0.03)
    assert min(found) >= 2 * num_hops - 1, "every hop leaves its place"


@pytest.mark.parametrize("sampling", ["forced", "uniform"])
def test_no_symbol_and_no_answer_is_favoured(sampling: str) -> None:
    task = make_task("p_hop", {"sampling": sampling})
    examples = [task.generate(1, number) for number in range(4000)]
    for texts in ([example.answer for example in examples], [example.question for example in examples[:500]]):
        counts = Counter("".join(texts))
        assert set(counts) == set("abcd")
        assert all(count / counts.total() == pytest.approx(0.25, abs=0.03) for count in counts.values())
    assert Counter(example.question[-1] for example in examples).most_common(1)[0][1] < 0.28 * 4000


def test_a_guess_of_the_last_symbol_is_right_by_chance_only_where_hops_are_forced() -> None:
    for sampling, low, high in (("forced", 0.2, 0.3), ("uniform", 0.4, 0.5)):
        task = make_task("p_hop", {"sampling": sampling})
        examples = [task.generate(2, number) for number in range(2000)]
        assert low < fmean(example.question[-1] == example.answer for example in examples) < high
