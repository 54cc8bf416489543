"""The search tree of latent thoughts on a graph: the class of a path that a model writes, and the nodes that its
thoughts consider.

Source: Hao et al. 2024 (arXiv 2412.06769), section 5 (section 4 of its version 3). After k thoughts a model returns to
text, and the probabilities of the first name show which nodes the thoughts consider.

- The *value* of a node is the probability of its name as the first concept of that text, given that it begins with a
  step: the product over the tokens of the name.
- Its *height* is the shortest distance to any leaf below it. (As in the text; the caption of figure 7 in the first
  version says longest.)
- The *frontier* after k thoughts is the set of nodes that a step can begin with after k steps: k steps from the root,
  by the shortest path, or k + 1 where the first step begins with a child of the root (ProntoQA).
- A node is *right* if the target is below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from pretrain.tasks.graph_form import Step
from pretrain.tasks.prosqa.prosqa_graph import Graph

NUM_TOP = 3
"""Nodes whose values are added up in the measure of parallelism."""


class Process(StrEnum):
    """The class of the reasoning in a text, in the order of the paper."""

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
    """Share of each class; they sum to 1."""
    method: str = ""
    """Of another run than the one that is searched."""


def judge(
    graph: Graph, steps: Sequence[Step | None], *, is_partial: bool, is_right: bool, first_distance: int = 0
) -> Process:
    """The class of a text.

    A path is correct if it is a shortest one from root to target, longer if it leads there another way, a hallucination
    if an edge does not exist or does not begin where the last one ended, and has a wrong target if it leads elsewhere.
    Where the front of the path was thought and not written (`is_partial`), the shortest front that completes it counts;
    if none does, it is a hallucination. A text without steps is judged by whether its answer is right. A malformed step
    is None. The first step of a whole path begins `first_distance` from the root.
    """
    if not steps:
        return Process.CORRECT_LABEL if is_right else Process.INCORRECT_LABEL
    path = _path(graph, steps)
    start = graph.distances(graph.root)[path[0]] if path else None
    if path is None or start is None or (start > first_distance and not is_partial):
        return Process.HALLUCINATION
    if path[-1] != graph.target:
        return Process.WRONG_TARGET
    shortest = graph.distances(graph.root)[graph.target]
    return Process.CORRECT_PATH if start + len(path) - 1 == shortest else Process.LONGER_PATH


def _path(graph: Graph, steps: Sequence[Step | None]) -> list[int] | None:
    """The nodes of the steps; None if an edge does not exist or does not begin where the last one ended."""
    number = {name: node for node, name in enumerate(graph.idx_to_symbol)}
    path: list[int] = []
    for step in steps:
        if step is None or step.child not in number:
            return None
        child = number[step.child]
        parent = child if step.parent is None else number.get(step.parent)
        if parent is None or (step.parent is not None and child not in graph.children[parent]):
            return None
        if path and path[-1] != parent:
            return None
        path = [*(path or [parent]), *([child] if step.parent is not None else [])]
    return path


def heights(graph: Graph) -> tuple[int, ...]:
    """Height of every node: edges on the shortest path down to any leaf, 0 for a leaf."""
    leaves = [node for node, children in enumerate(graph.children) if not children]
    distances = [graph.distances(node) for node in range(len(graph.children))]
    return tuple(min(down for leaf in leaves if (down := row[leaf]) is not None) for row in distances)


def leads_to_target(graph: Graph) -> tuple[bool, ...]:
    """Whether the target is below each node, itself included."""
    return tuple(graph.distances(node)[graph.target] is not None for node in range(len(graph.idx_to_symbol)))


def concepts(graph: Graph) -> tuple[int, ...]:
    """The nodes with a parent, which a step can lead to; persons have none."""
    return tuple(node for node, parents in enumerate(graph.parents) if parents)


class NodeValue(NamedTuple):
    """A node and its value after the thoughts about one question."""

    question: int
    num_thoughts: int
    name: str
    value: float
    distance: int | None
    """Steps before one that begins with it, by the shortest path; None if it is not reached."""
    height: int
    is_right: bool


def node_values(
    question: int, graph: Graph, num_thoughts: int, probabilities: dict[str, float], first_distance: int = 0
) -> list[NodeValue]:
    """Every concept of a question with its value, the probability of its name; the first step begins `first_distance`
    from the root."""
    height, is_right = heights(graph), leads_to_target(graph)
    steps = [None if far is None else far - first_distance for far in graph.distances(graph.root)]
    return [
        NodeValue(question, num_thoughts, name, probabilities[name], steps[node], height[node], is_right[node])
        for node in concepts(graph)
        for name in [graph.idx_to_symbol[node]]
    ]


def top_values(values: Sequence[NodeValue]) -> list[list[float]]:
    """The sums of the largest one, two, ... NUM_TOP values of each question after one number of thoughts. For each
    number of nodes the sums ascend; number i of n is the percentile 100 · (i + 1/2) / n."""
    by_question: dict[int, list[float]] = {}
    for value in values:
        by_question.setdefault(value.question, []).append(value.value)
    ranked = [sorted(group, reverse=True) for group in by_question.values()]
    return [sorted(sum(group[: count + 1]) for group in ranked) for count in range(NUM_TOP)]


class HeightValue(NamedTuple):
    """Nodes of one height."""

    height: int
    is_right: bool
    mean: float
    """Of their values."""
    stderr: float
    """Of the mean; 0 for a single node."""
    num_nodes: int


def values_by_height(values: Sequence[NodeValue]) -> list[HeightValue]:
    """Mean value of the frontier's right and wrong nodes of each height, in the order of heights."""
    groups: dict[tuple[int, bool], list[float]] = {}
    for value in values:
        if value.distance == value.num_thoughts:
            groups.setdefault((value.height, value.is_right), []).append(value.value)
    by_height = []
    for (height, is_right), group in sorted(groups.items()):
        mean, size = sum(group) / len(group), len(group)
        variance = sum((value - mean) ** 2 for value in group) / max(size - 1, 1)
        by_height.append(HeightValue(height, is_right, mean, (variance / size) ** 0.5, size))
    return by_height


def frontier_share(values: Sequence[NodeValue]) -> float:
    """Mean over questions of the summed value of the frontier."""
    questions = {value.question for value in values}
    return sum(value.value for value in values if value.distance == value.num_thoughts) / len(questions)
