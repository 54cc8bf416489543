"""Reading graphs: the roots are those that a walk back through the text finds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.tasks.prosqa.prosqa import ProsQAParameters
from pretrain.tasks.prosqa.prosqa_roots import ProsQARoots

SMALL = ProsQAParameters(num_nodes=14, min_hops=2, max_hops=3, num_persons=4, num_concepts=12, max_edges=20)


def walk_back(text: str, node: str) -> str:
    """Looks for the last edge to a node in the text itself, again and again."""
    place = max((at for at in range(1, len(text), 3) if text[at] == node), default=None)
    return node if place is None else walk_back(text, text[place - 1])


def test_the_prefixes_are_answered_as_the_documentation_shows() -> None:
    answers = ProsQARoots(ProsQAParameters()).prefix_answers("Dk,ab,Ak,ka,bc,Bf,?bfkA")
    assert "".join(answer or "." for answer in answers) == "DD.aa.AA.AA.AA.BB..ABAA"


@given(st.integers(0, 2**64))
@settings(max_examples=50, deadline=None)
def test_every_prefix_is_answered_by_a_walk_back(seed: int) -> None:
    task = ProsQARoots(SMALL)
    example = task.generate(seed, 0)
    edges, _, asked = example.question.partition("?")
    assert sorted(asked) == sorted({*edges} - {","}), "every node once"
    answers = task.prefix_answers(example.question)
    for at in range(0, len(edges), 3):
        assert answers[at] == answers[at + 1] == walk_back(edges[:at], edges[at])
        assert answers[at + 2] is None
    assert list(answers[len(edges) + 1 :]) == [walk_back(edges, node) for node in asked]
    assert example.answer == answers[-1]


def test_graphs_with_more_edges_are_drawn_again() -> None:
    questions = [ProsQARoots(SMALL).generate(0, number).question for number in range(100)]
    assert max(question.count(",") for question in questions) == 20
    free = ProsQARoots(SMALL.model_copy(update={"max_edges": None}))
    assert max(free.generate(0, number).question.count(",") for number in range(100)) > 20


@pytest.mark.parametrize(
    ("question", "reason"),
    [("Ab,bc?c", "not of the form"), ("Ab,bc,?", "not of the form"), ("ab,ba,?b", "go round in a circle")],
)
def test_what_is_no_question_is_refused(question: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ProsQARoots(SMALL).solve(question)
