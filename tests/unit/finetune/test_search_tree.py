"""The search tree's definitions on graphs drawn by hand, in both forms of text."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from finetune.search.graph_text import GraphText
from finetune.search.search_tree import (
    NodeValue,
    Process,
    concepts,
    frontier_share,
    heights,
    judge,
    leads_to_target,
    node_values,
    top_values,
    values_by_height,
)
from pretrain.tasks.graph_form import Step
from pretrain.tasks.prosqa.prontoqa import ProofForm
from pretrain.tasks.prosqa.prosqa import WordForm
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.prosqa.prosqa_symbolic import SymbolForm
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example

#        A -> a -> c -> e       A asks for e, not for g; two shortest ways to c (by a and b), a longer way by d;
#        A -> b -> c            f is a leaf beside the way; B -> g is elsewhere
#        b -> d -> c, b -> f
QUESTION = "Aa,Ab,ac,bc,bd,dc,ce,bf,Bg,?Aeg"
GRAPH = SymbolForm().graph(QUESTION)
WORDS = (
    "Alex is a impus. Alex is a bompus. Every impus is a cumpus. Every bompus is a cumpus. Every bompus is a dumpus. "
    "Every dumpus is a cumpus. Every cumpus is a empus. Every bompus is a fumpus. "
    "Bob is a gumpus. Is Alex a gumpus or empus?"
)


def by_name(graph: Graph, numbers: tuple) -> dict[str, object]:
    return dict(zip(graph.idx_to_symbol, numbers, strict=True))


def test_height_is_the_shortest_way_to_a_leaf() -> None:
    assert by_name(GRAPH, heights(GRAPH)) == {"A": 2, "a": 2, "b": 1, "c": 1, "d": 2, "e": 0, "f": 0, "B": 1, "g": 0}


def test_a_node_is_right_if_the_target_is_below_it() -> None:
    right = {name for name, is_right in by_name(GRAPH, leads_to_target(GRAPH)).items() if is_right}
    assert right == set("Aabcde")


def test_concepts_are_the_nodes_that_a_step_leads_to() -> None:
    assert {GRAPH.idx_to_symbol[node] for node in concepts(GRAPH)} == set("abcdefg")


@pytest.mark.parametrize(
    ("steps", "is_partial", "wanted"),
    [
        ("Aa ac ce", False, Process.CORRECT_PATH),
        ("Ab bc ce", False, Process.CORRECT_PATH),
        ("Ab bd dc ce", False, Process.LONGER_PATH),
        ("Ab bf", False, Process.WRONG_TARGET),
        ("Aa ac", False, Process.WRONG_TARGET),  # stops on the way
        ("Aa ae", False, Process.HALLUCINATION),  # no such edge
        ("Aa bc ce", False, Process.HALLUCINATION),  # disconnected
        ("ac ce", False, Process.HALLUCINATION),  # does not begin at the root, and nothing was thought
        ("Aa ax", False, Process.HALLUCINATION),  # no such node
        ("Aa ca", False, Process.HALLUCINATION),  # the wrong way round
        ("ac ce", True, Process.CORRECT_PATH),
        ("ce", True, Process.CORRECT_PATH),
        ("Aa ac ce", True, Process.CORRECT_PATH),
        ("dc ce", True, Process.LONGER_PATH),  # the shortest that completes it goes round by d
        ("bf", True, Process.WRONG_TARGET),
        ("Bg", True, Process.HALLUCINATION),  # nothing leads from the root to B
        ("bd ce", True, Process.HALLUCINATION),
    ],
)
def test_paths_are_judged_as_the_paper_does(steps: str, is_partial: bool, wanted: Process) -> None:
    written = [Step(*step) for step in steps.split()]
    for is_right in (True, False):  # the answer counts only where there is no path
        assert judge(GRAPH, written, is_partial=is_partial, is_right=is_right) is wanted


def test_a_malformed_step_is_a_hallucination_and_no_steps_are_judged_by_the_answer() -> None:
    assert judge(GRAPH, [Step("A", "a"), None], is_partial=False, is_right=True) is Process.HALLUCINATION
    assert judge(GRAPH, [], is_partial=True, is_right=True) is Process.CORRECT_LABEL
    assert judge(GRAPH, [], is_partial=False, is_right=False) is Process.INCORRECT_LABEL


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Aa,ac,=Ae", [Step("A", "a"), Step("a", "c")]),
        ("=Ae", []),
        ("", []),
        ("Aa,=Ae=Ag", [Step("A", "a")]),
        ("Aa,ac", [Step("A", "a"), Step("a", "c")]),  # no answer: out of tokens
        ("Aa,a", [Step("A", "a"), None]),
        ("Aab,=Ae", [None]),
        ("Aa,,=Ae", [Step("A", "a"), None]),
        ("Aa=Ae", [Step("A", "a")]),
    ],
)
def test_symbols_are_read_as_steps(text: str, wanted: list[Step | None]) -> None:
    assert text_of(QUESTION).steps(GRAPH, text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "Tom is a terpus.\nEvery terpus is a brimpus.\n### Tom is a brimpus.",
            [Step("Tom", "terpus"), Step("terpus", "brimpus")],
        ),
        ("### Tom is a brimpus.", []),
        ("Every terpus is a brim", [None]),
        ("terpus is a brimpus.\n### Tom", [None]),
        ("Every terpus is a brimpus. Every brimpus is a zumpus.\n### Tom", [None]),
        ("Every terpus is a brimpus.\n", [Step("terpus", "brimpus")]),
    ],
)
def test_words_are_read_as_steps(text: str, wanted: list[Step | None]) -> None:
    assert text_of(WORDS).steps(GRAPH, text) == wanted


def test_the_form_of_a_question_is_found() -> None:
    assert isinstance(text_of(QUESTION).form, SymbolForm)
    assert isinstance(text_of(WORDS).form, WordForm)
    graph = text_of(WORDS).form.graph(WORDS)
    assert sorted(heights(graph)) == sorted(heights(GRAPH))
    assert graph.idx_to_symbol[graph.target] == "empus"
    assert GraphText.of_question("How many eggs?") is None


PROOFS = [make_task("prontoqa", {"num_hops": hops}).generate(0, number) for hops in (1, 3, 5) for number in range(20)]


def written(example: Example, *, thought: int = 0) -> str:
    """A chain without its first steps."""
    return "".join(f"{step}\n" for step in example.steps[thought:]) + f"### {example.answer}"


def test_a_proof_is_a_path_from_the_person_to_what_holds_of_them() -> None:
    for example in PROOFS:
        text = text_of(example.question)
        assert isinstance(text.form, ProofForm)
        graph = text.form.graph(example.question)
        names = graph.idx_to_symbol
        assert len(graph.shortest_paths()) == 1
        path = [names[node] for node in graph.shortest_paths()[0]]
        assert len(path) == len(example.steps) + 1
        assert example.steps[-1] == f"{path[0]} is {path[-1]}."  # the property, or "not" and the property
        assert {names[graph.target], names[graph.neg_target]} == {path[-1], f"not {path[-1]}".replace("not not ", "")}
        steps = text.steps(graph, written(example))
        assert steps == [*(Step(*pair) for pair in pairwise(path[1:])), Step(None, path[-1])]
        for spelt, name in zip((step.partition(".")[0] for step in example.steps), path[1:], strict=True):
            assert spelt == text.form.opening(graph) + text.form.spelt(name)
        for thought in range(len(example.steps) + 1):
            right = judge(
                graph, text.steps(graph, written(example, thought=thought)), is_partial=thought > 0, is_right=True,
                first_distance=1,
            )  # fmt: skip
            assert right is (Process.CORRECT_LABEL if thought == len(example.steps) else Process.CORRECT_PATH)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda steps, _: steps[1:], Process.HALLUCINATION),  # nothing was thought
        (lambda steps, _: [steps[0], *steps[2:]], Process.HALLUCINATION),  # disconnected
        (lambda steps, _: [steps[0].replace("Each", "Most")[:-1], *steps[1:]], Process.HALLUCINATION),
        (lambda steps, other: [step.replace(step.split()[0], other) for step in steps], Process.HALLUCINATION),
        (lambda steps, _: [*steps[:-1], steps[0].partition(". ")[0] + "."], Process.HALLUCINATION),
        (lambda steps, _: steps[:1], Process.WRONG_TARGET),
    ],
)
def test_a_proof_that_is_none_is_told(change: Callable[[list[str], str], list[str]], wanted: Process) -> None:
    for example in PROOFS[20:]:
        text = text_of(example.question)
        graph = text.form.graph(example.question)
        other = "Nobody"
        steps = text.steps(graph, written(example._replace(steps=tuple(change(list(example.steps), other)))))
        assert judge(graph, steps, is_partial=False, is_right=True, first_distance=1) is wanted


def text_of(question: str) -> GraphText:
    found = GraphText.of_question(question)
    assert found is not None
    return found


def values(question: int, num_thoughts: int = 1, **probabilities: float) -> list[NodeValue]:
    return node_values(question, GRAPH, num_thoughts, dict.fromkeys("abcdefg", 0.0) | probabilities)


def test_values_know_where_their_node_is() -> None:
    found = {value.name: value for value in values(0, a=0.5, f=0.25)}
    assert found["a"] == NodeValue(0, 1, "a", 0.5, 1, 2, True)
    assert found["f"] == NodeValue(0, 1, "f", 0.25, 2, 0, False)
    assert found["g"] == NodeValue(0, 1, "g", 0.0, None, 0, False)


def test_the_best_nodes_of_each_question_are_added_up_and_sorted_over_questions() -> None:
    found = top_values(
        values(0, a=0.5, b=0.25, c=0.125) + values(1, g=0.75, a=0.125) + values(2, a=0.25, b=0.25, c=0.25, d=0.25)
    )
    assert found == [[0.25, 0.5, 0.75], [0.5, 0.75, 0.875], [0.75, 0.875, 0.875]]


def test_values_by_height_are_those_of_the_frontier() -> None:
    found = values_by_height(values(0, a=0.5, b=0.25, c=1.0) + values(1, a=0.25, b=0.75))
    assert [(value.height, value.is_right, value.mean, value.num_nodes) for value in found] == [
        (1, True, 0.5, 2),
        (2, True, 0.375, 2),
    ]
    assert found[0].stderr == pytest.approx(0.25)  # deviation sqrt(1/8) over sqrt(2)
    after_two = values_by_height(values(0, num_thoughts=2, c=0.5, d=0.25, f=0.125))
    assert [(value.height, value.is_right, value.mean) for value in after_two] == [
        (0, False, 0.125),
        (1, True, 0.5),
        (2, True, 0.25),
    ]
    assert all(value.stderr == 0 for value in after_two)


def test_the_share_of_the_frontier_is_a_mean_over_questions() -> None:
    assert frontier_share(values(0, a=0.5, b=0.25, c=0.25) + values(1, a=0.25)) == 0.5
