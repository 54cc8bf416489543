"""The search tree of latent thoughts on a graph: what a path that a model writes is worth, and where its thoughts look.

Source: Hao et al. 2024 (arXiv 2412.06769), section 5 (section 4 of its version 3). After k thoughts a model goes back
to text, and what it would name first says which nodes the thoughts keep in view.

- The *value* of a node is the probability of its name as the first concept of that text, given that it begins with a
  step: the product over the tokens of the name.
- Its *height* is the shortest distance to any leaf below it. (So the text; the caption of figure 7 in the first version
  says longest.)
- The *frontier* after k thoughts are the nodes k steps from the root, by the shortest way.
- A node is *right* if the target is below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from finetune.search.graph_text import Step
from pretrain.tasks.prosqa.prosqa_graph import Graph

NUM_TOP = 3
"""Nodes whose values are added up in the measure of parallelism."""


class Process(StrEnum):
    """What the reasoning in a text is, in the order of the paper."""

    CORRECT_PATH = "correct path"
    LONGER_PATH = "longer path"
    HALLUCINATION = "hallucination"
    WRONG_TARGET = "wrong target"
    CORRECT_LABEL = "correct label"
    INCORRECT_LABEL = "incorrect label"


@dataclass(frozen=True, kw_only=True)
class ProcessBar:
    """The answers of one model at one number of thoughts."""

    label: str
    accuracy: float
    stderr: float
    shares: dict[Process, float]
    """Of each class; together 1."""


def judge(graph: Graph, steps: Sequence[Step | None], *, is_partial: bool, is_right: bool) -> Process:
    """The class of a text.

    A path is correct if it is one of the shortest from root to target, longer if it leads there another way, a
    hallucination if one of its edges does not exist or does not begin where the last one ended, and has a wrong target
    if it leads elsewhere. Where the front of the path was thought and not written, the shortest one that completes it
    counts; if none does, it is a hallucination. A text without steps is judged by its answer.

    Args:
        graph: of the question.
        steps: as written, None where one is malformed.
        is_partial: whether the front of the path is missing because it was thought.
        is_right: whether the answer is.
    """
    if not steps:
        return Process.CORRECT_LABEL if is_right else Process.INCORRECT_LABEL
    path = _path(graph, steps)
    hidden = graph.distances(graph.root)[path[0]] if path else None
    if path is None or hidden is None or (hidden and not is_partial):
        return Process.HALLUCINATION
    if path[-1] != graph.target:
        return Process.WRONG_TARGET
    shortest = graph.distances(graph.root)[graph.target]
    return Process.CORRECT_PATH if hidden + len(steps) == shortest else Process.LONGER_PATH


def _path(graph: Graph, steps: Sequence[Step | None]) -> list[int] | None:
    """The nodes that steps go through; None if an edge does not exist or does not begin where the last one ended."""
    number = {name: node for node, name in enumerate(graph.idx_to_symbol)}
    path: list[int] = []
    for step in steps:
        if step is None or step.parent not in number or step.child not in number:
            return None
        parent, child = number[step.parent], number[step.child]
        if child not in graph.children[parent] or (path and path[-1] != parent):
            return None
        path = [*path, child] if path else [parent, child]
    return path


def heights(graph: Graph) -> tuple[int, ...]:
    """Height of every node: edges on the shortest way down to any leaf, 0 for a leaf."""
    found: list[int | None] = [None if children else 0 for children in graph.children]
    level = [node for node, children in enumerate(graph.children) if not children]
    height = 0
    while level:
        height += 1
        level = [
            parent
            for parent in dict.fromkeys(parent for node in level for parent in graph.parents[node])
            if found[parent] is None
        ]
        for node in level:
            found[node] = height
    assert None not in found, "a node of an acyclic graph has a leaf below it"
    return tuple(height for height in found if height is not None)


def leads_to_target(graph: Graph) -> tuple[bool, ...]:
    """Whether the target is below each node, itself included."""
    return tuple(graph.distances(node)[graph.target] is not None for node in range(len(graph.idx_to_symbol)))


def concepts(graph: Graph) -> tuple[int, ...]:
    """The nodes that a step can lead to: those with a parent. The others are persons."""
    return tuple(node for node, parents in enumerate(graph.parents) if parents)


class NodeValue(NamedTuple):
    """A node as the thoughts about one question see it."""

    question: int
    """Number of the question."""
    num_thoughts: int
    """Thoughts before the text."""
    name: str
    value: float
    """Probability of its name, from 0 to 1."""
    distance: int | None
    """Steps from the root, by the shortest way; None if it is not reached."""
    height: int
    """Steps to the nearest leaf."""
    is_right: bool
    """Whether the target is below it."""


def node_values(question: int, graph: Graph, num_thoughts: int, probabilities: dict[str, float]) -> list[NodeValue]:
    """What thoughts make of every concept of a question; `probabilities` are by name."""
    distances, height, is_right = graph.distances(graph.root), heights(graph), leads_to_target(graph)
    return [
        NodeValue(question, num_thoughts, name, probabilities[name], distances[node], height[node], is_right[node])
        for node in concepts(graph)
        for name in [graph.idx_to_symbol[node]]
    ]


def top_values(values: Sequence[NodeValue]) -> list[list[float]]:
    """How much of the value the best nodes of each question have together: for the best one, two, three, sorted over
    the questions.

    Args:
        values: of many questions, after the same number of thoughts.

    Returns:
        NUM_TOP lists, each ascending; place i of n is the percentile 100 · (i + 1/2) / n.
    """
    by_question: dict[int, list[float]] = {}
    for value in values:
        by_question.setdefault(value.question, []).append(value.value)
    ranked = [sorted(found, reverse=True) for found in by_question.values()]
    return [sorted(sum(found[: count + 1]) for found in ranked) for count in range(NUM_TOP)]


class HeightValue(NamedTuple):
    """Nodes of one height."""

    height: int
    is_right: bool
    mean: float
    stderr: float
    """Of the mean; 0 for a single node."""
    num_nodes: int


def values_by_height(values: Sequence[NodeValue]) -> list[HeightValue]:
    """Mean value of the frontier's right and wrong nodes of each height, in the order of heights."""
    groups: dict[tuple[int, bool], list[float]] = {}
    for value in values:
        if value.distance == value.num_thoughts:
            groups.setdefault((value.height, value.is_right), []).append(value.value)
    found = []
    for (height, is_right), group in sorted(groups.items()):
        mean, size = sum(group) / len(group), len(group)
        variance = sum((value - mean) ** 2 for value in group) / max(size - 1, 1)
        found.append(HeightValue(height, is_right, mean, (variance / size) ** 0.5, size))
    return found


def frontier_share(values: Sequence[NodeValue]) -> float:
    """Mean over questions of the value that the frontier's nodes have together."""
    questions = {value.question for value in values}
    return sum(value.value for value in values if value.distance == value.num_thoughts) / len(questions)
