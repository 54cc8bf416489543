"""ProsQA: the solver judges the generator and the released files, and the generator's graphs are like the released
ones."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean, variance
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.tasks.example_file import read_examples
from pretrain.tasks.prosqa.prosqa import CONCEPTS, PERSONS, ProsQA, ProsQAParameters, write_example
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example
from tests.support.example_files import read_graphs, write_examples

RELEASED = Path(__file__).parents[3].parent / "shared/data/prosqa"
FILES = {"prosqa_test.json.gz": 500, "prosqa_valid.json.gz": 300}
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason=f"the released files are not in {RELEASED}")

TASK = ProsQA(ProsQAParameters())
TINY = "Tom is a lempus. Every lempus is a impus. Sam is a dumpus. Is Tom a dumpus or impus?"


def released() -> list[tuple[Example, Graph]]:
    rows = {name: read_graphs(RELEASED / name) for name in FILES}
    assert {name: len(found) for name, found in rows.items()} == FILES
    return [row for found in rows.values() for row in found]


@pytest.fixture(scope="module")
def drawn() -> list[Graph]:
    return [TASK.draw_graph(Random(number)) for number in range(2000)]


def test_the_solver_and_the_generator_agree() -> None:
    for number in range(2000):
        example = TASK.generate(7, number)
        assert TASK.solve(example.question) == example.answer
        assert_proved(example, Graph.parse(example.question))


@given(st.integers(10, 40), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_difficulty_gives_graphs_of_the_wanted_kind(num_nodes: int, min_hops: int, more: int, seed: int) -> None:
    task = ProsQA(ProsQAParameters(num_nodes=num_nodes, min_hops=min_hops, max_hops=4 + more))
    graph = task.draw_graph(Random(seed))
    assert len(graph.idx_to_symbol) <= task.parameters.num_nodes
    assert min_hops <= len(graph.shortest_paths()[0]) - 1 <= 4 + more
    example = write_example(graph, Random(seed))
    assert task.solve(example.question) == example.answer
    assert_proved(example, graph)


def test_a_drawn_graph_is_what_its_text_says() -> None:
    for number in range(200):
        graph = TASK.draw_graph(Random(number))
        parsed = Graph.parse(write_example(graph, Random(number)).question)
        assert facts(parsed) == facts(graph)
        assert named_question(parsed) == named_question(graph)
        assert sorted(map(parsed.chain, parsed.shortest_paths())) == sorted(map(graph.chain, graph.shortest_paths()))
        for node, symbol in enumerate(graph.idx_to_symbol):
            assert symbol in (CONCEPTS if graph.parents[node] else PERSONS)


def test_distances_equal_those_by_repeated_relaxation() -> None:
    for number in range(100):
        graph = TASK.draw_graph(Random(number))
        distance = [0 if node == graph.root else math.inf for node in range(len(graph.idx_to_symbol))]
        for _ in distance:
            for parent, child in graph.edges:
                distance[child] = min(distance[child], distance[parent] + 1)
        assert [math.inf if near is None else near for near in graph.distances(graph.root)] == distance
        paths = graph.shortest_paths()
        assert len(set(paths)) == len(paths)
        assert {len(path) - 1 for path in paths} == {distance[graph.target]}


def test_examples_are_a_function_of_seed_and_number() -> None:
    again = ProsQA(ProsQAParameters())
    assert [again.generate(1, number) for number in (5, 3)] == [TASK.generate(1, number) for number in (5, 3)]
    assert len({TASK.generate(seed, number).question for seed in range(3) for number in range(20)}) == 60
    digest = hashlib.blake2b(
        repr([TASK.generate(1, number) for number in range(20)]).encode(), digest_size=8
    ).hexdigest()
    assert digest == "103fa7fb3e514b21"  # in every process, whatever its hash seed
    assert make_task("prosqa", {"num_nodes": 20}).generate(1, 3) != TASK.generate(1, 3)


@pytest.mark.parametrize(
    ("name", "parameters", "digest"),
    [
        ("prosqa", {}, "d1fa13213be08044"),
        ("prosqa", {"distractor": "same_depth"}, "95ee799fe14f1fa0"),
        ("prosqa", {"num_nodes": 40, "max_hops": 8}, "2589c4f72fe654b3"),
        ("prosqa", {"num_nodes": 6, "min_hops": 1, "max_hops": 3}, "4b9deb2671fe5a82"),
        ("prosqa", {"num_nodes": 20, "min_hops": 1, "max_hops": 2, "distractor": "same_depth"}, "ecb7b2615d76d0b7"),
        ("prosqa_symbolic", {"num_nodes": 10, "min_hops": 2, "max_hops": 3}, "6bc41da233b70b25"),
        (
            "prosqa_symbolic", {"num_nodes": 12, "min_hops": 3, "max_hops": 3, "distractor": "same_depth"},
            "1a37a1bae251f1fe",
        ),
    ],
)  # fmt: skip
def test_examples_are_those_of_every_release(name: str, parameters: dict[str, object], digest: str) -> None:
    """Runs go on, and tests are scored again, on the very same questions: hashes of 200 examples each, taken before the
    drawing was made faster."""
    task = make_task(name, parameters)
    examples = [task.generate(seed, number) for seed in (0, 7) for number in range(100)]
    assert hashlib.blake2b(repr(examples).encode(), digest_size=8).hexdigest() == digest


def test_picked_examples_are_in_their_split() -> None:
    for split in ("train", "validation", "test"):
        for number in range(5):
            example = TASK.pick(split, 0, number)
            assert TASK.split_of(example) == split
            assert TASK.solve(example.question) == example.answer


def test_a_difficulty_that_cannot_be_met_says_so() -> None:
    with pytest.raises(ValueError, match=r"min_hops=4 is more than max_hops=2"):
        ProsQAParameters(min_hops=4, max_hops=2)
    with pytest.raises(
        ValueError, match=r"none of 4000 graphs of num_nodes=4 has a target 6 \(min_hops\) to 9 \(max_hops\) steps away"
    ):
        ProsQA(ProsQAParameters(num_nodes=4, min_hops=6, max_hops=9)).generate(0, 0)


def test_few_names_are_the_first_of_the_lists_and_graphs_with_more_nodes_are_drawn_again() -> None:
    few = {"num_nodes": 14, "min_hops": 2, "max_hops": 2, "num_persons": 4, "num_concepts": 10}
    words, symbols = make_task("prosqa", few), make_task("prosqa_symbolic", few)
    assert symbols.vocabulary == (*"ABCDabcdefghij", *",?=")
    seen: set[str] = set()
    for number in range(200):
        seen |= set(symbols.generate(0, number).question)
        assert set(Graph.parse(words.generate(0, number).question).idx_to_symbol) <= {*PERSONS[:4], *CONCEPTS[:10]}
    assert seen == set(symbols.vocabulary) - {"="}
    with pytest.raises(ValueError, match="and names for all; set other hops, or more nodes"):
        make_task("prosqa", {"num_nodes": 40, "num_concepts": 2}).generate(0, 0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Every lempus is", "All lempuses are", "not of the form .*: 'All lempuses are a impus.'"),
        ("Is Tom a dumpus or impus?", "Who is Tom?", "does not end with a question"),
        ("Sam is a dumpus", "Tom is a dumpus", "must reach the target dumpus and not the other option impus"),
        ("Every lempus is", "Every scrompus is", "Tom must reach the target"),
    ],
)
def test_a_text_that_is_no_question_is_refused(old: str, new: str, reason: str) -> None:
    assert TASK.solve(TINY) == "Tom is a impus."
    assert old in TINY
    with pytest.raises(ValueError, match=reason):
        TASK.solve(TINY.replace(old, new))


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    examples = [TASK.generate(0, number) for number in range(20)]
    for name in ("examples.json", "examples.json.gz"):
        write_examples(tmp_path / name, examples)
        assert read_examples(tmp_path / name) == examples


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("question", None, r"question: "),
        ("question", "", r"question: .*at least 1"),
        ("question", " \n", r"question: is blank"),
        ("answer", " ", r"answer: is blank"),
        ("steps", "Tom is a lempus.", r"steps: "),
        ("steps", ["Tom is a lempus.", 3], r"steps\.1: "),
        ("answer", ["Tom"], r"answer: "),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, key: str, value: object, reason: str) -> None:
    path = tmp_path / "rows.json"
    write_examples(path, [TASK.solve_in_steps(TINY)] * 3)
    rows = json.loads(path.read_text())
    rows[1][key] = value
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=rf"rows\.json: row 1: {reason}"):
        read_examples(path)


def test_empty_steps_are_none_and_a_number_is_to_be_written_as_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = {"question": "Q?", "steps": ["<<1+1=2>>", "", " "], "answer": "2"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([row, row | {"steps": [""]}]).encode())
    assert [example.steps for example in read_examples(path)] == [("<<1+1=2>>",), ()]
    path.write_text(json.dumps([row | {"answer": 2}]))
    with pytest.raises(ValueError, match=r'rows\.json: row 0: answer: .*string: write it as text, "2"$'):
        read_examples(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"edges": ((0, 1), (1, 99))}, r"no node 99: there are 5"),
        ({"edges": ((0, 1), (1, -1))}, r"no node -1: there are 5"),
        ({"idx_to_symbol": ("Tom",) * 5}, r"two nodes have the same name"),
        ({"root": 3}, r"Sam must reach the target impus and not the other option dumpus"),
        ({"target": 4}, r"Tom must reach the target dumpus"),
    ],
)
def test_a_graph_that_asks_nothing_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(Graph.parse(TINY), **change)


@pytest.mark.parametrize(
    ("name", "data"), [("a.json", b"{}"), ("b.json", b"[1"), ("c.json", b"\xff"), ("d.json.gz", b"no archive")]
)
def test_a_file_that_is_no_list_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
        read_examples(tmp_path / name)


@needs_released
def test_the_solver_is_right_on_every_released_example() -> None:
    for example, graph in released():
        solved = TASK.solve_in_steps(example.question)
        assert TASK.solve(example.question) == solved.answer == example.answer == graph.answer
        assert len(solved.steps) == len(example.steps)
        parsed = Graph.parse(example.question)
        assert facts(parsed) == facts(graph)
        assert named_question(parsed) == named_question(graph)
        assert_proved(example, graph)
        assert_proved(solved, graph)


@needs_released
def test_drawn_graphs_have_the_statistics_of_the_released_ones(drawn: list[Graph]) -> None:
    graphs = [graph for _, graph in released()]
    for name, measure in MEASURES.items():
        ours, theirs = ([float(measure(graph)) for graph in some] for some in (drawn, graphs))
        error = math.sqrt(variance(ours) / len(ours) + variance(theirs) / len(theirs))
        assert abs(fmean(ours) - fmean(theirs)) < 3.5 * error, (
            f"{name}: {fmean(ours):.3f} against {fmean(theirs):.3f} ± {error:.3f}"
        )
        # Kolmogorov and Smirnov's two samples, at 0.1 %.
        bound = 1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs))
        assert largest_gap(ours, theirs) < bound, (
            f"{name}: {largest_gap(ours, theirs):.3f} apart, more than {bound:.3f}"
        )


@needs_released
def test_drawn_graphs_have_what_every_released_one_has(drawn: list[Graph]) -> None:
    for graphs in (drawn, [graph for _, graph in released()]):
        for graph in graphs:
            assert {graph.root, 1 - graph.root} == {0, 1}
            assert not graph.parents[0] and not graph.parents[1]
            assert all(parent < child for parent, child in graph.edges)
            assert len(set(graph.edges)) == len(graph.edges)
            assert all(parents or children for parents, children in zip(graph.parents, graph.children, strict=True))
            assert not graph.children[graph.target] and not graph.children[graph.neg_target]
            own, other = graph.distances(graph.root), graph.distances(1 - graph.root)
            leaves = [
                node
                for node, children in enumerate(graph.children)
                if own[node] is not None and not children and other[node] is None
            ]
            assert own[graph.target] == max(own[leaf] or 0 for leaf in leaves)
            assert other[graph.target] is None and other[graph.neg_target] is not None
            assert 3 <= (own[graph.target] or 0) <= 6
    names = {symbol for _, graph in released() for symbol in graph.idx_to_symbol}
    assert names == {*PERSONS, *CONCEPTS}


MEASURES: dict[str, Callable[[Graph], float]] = {
    "nodes": lambda graph: len(graph.idx_to_symbol),
    "edges": lambda graph: len(graph.edges),
    "path length": lambda graph: len(graph.shortest_paths()[0]) - 1,
    "shortest paths": lambda graph: len(graph.shortest_paths()),
    "nodes without parents": lambda graph: sum(not parents for parents in graph.parents),
    "leaves": lambda graph: sum(not children for children in graph.children),
    "root is node 1": lambda graph: graph.root,
    "children of the root": lambda graph: len(graph.children[graph.root]),
    "children of the other root": lambda graph: len(graph.children[1 - graph.root]),
    "nodes reached from the root": lambda graph: _num_reached(graph, graph.root),
    "nodes reached from both": lambda graph: sum(near is not None is not far for near, far in _both_distances(graph)),
    "nodes reached from neither": lambda graph: sum(near is None is far for near, far in _both_distances(graph)),
    "other option from its root": lambda graph: graph.distances(1 - graph.root)[graph.neg_target] or 0,
    "most parents": lambda graph: max(map(len, graph.parents)),
    "share with one parent": lambda graph: fmean(len(parents) == 1 for parents in graph.parents if parents),
}


def _num_reached(graph: Graph, start: int) -> int:
    return sum(near is not None for near in graph.distances(start))


def _both_distances(graph: Graph) -> Iterable[tuple[int | None, int | None]]:
    return zip(graph.distances(0), graph.distances(1), strict=True)


def largest_gap(one: list[float], other: list[float]) -> float:
    """Largest difference of the two distribution functions."""
    counts, gap, difference = (Counter(one), Counter(other)), 0.0, 0.0
    for value in sorted({*one, *other}):
        difference += counts[0][value] / len(one) - counts[1][value] / len(other)
        gap = max(gap, abs(difference))
    return gap


def facts(graph: Graph) -> list[str]:
    return sorted(graph.sentence(*edge) for edge in graph.edges)


def named_question(graph: Graph) -> list[str]:
    return [graph.idx_to_symbol[node] for node in (graph.root, graph.target, graph.neg_target)]


def assert_proved(example: Example, graph: Graph) -> None:
    """The steps are facts of the question, each begins where the one before ends, and none is too many."""
    assert set(example.steps) <= set(facts(graph))
    assert example.steps in set(map(graph.chain, graph.shortest_paths()))
    assert example.steps[0].split()[0] == example.answer.split()[0]
    assert example.steps[-1].split()[-1] == example.answer.split()[-1]
