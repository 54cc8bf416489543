"""Shortcuts of ProsQA: rules that choose between the two options without a search from the root.

Each gives an option a number; the option of the larger one is the answer, and equal ones leave it open. In the 800
released questions the option that is no child of a person is right in 59.7 %, the one farther from any person in
91.6 %.
"""

from collections.abc import Callable
from functools import lru_cache

from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.task import Rule

OptionRule = Callable[[Graph, int], float]
"""A number for the node of an option."""


def option_shortcuts(parse: Callable[[str], Graph], write: Callable[[Graph, int], str]) -> dict[str, Rule]:
    """The rules of this file for questions that `parse` reads, with answers as `write` gives them for an option."""

    parse = lru_cache(maxsize=1)(parse)  # a question's rules are asked one after the other

    def as_rule(value: OptionRule) -> Rule:
        def rule(question: str) -> list[str]:
            graph = parse(question)
            options = graph.target, graph.neg_target
            best = max(value(graph, option) for option in options)
            return [write(graph, option) for option in options if value(graph, option) == best]

        return rule

    return {name: as_rule(value) for name, value in OPTION_RULES.items()}


def _is_child_of_no_person(graph: Graph, option: int) -> float:
    """One look: which letters stand before the option, and are any of them upper-case."""
    return not any(not graph.parents[parent] for parent in graph.parents[option])


def _shortest_way_from_a_person(graph: Graph, option: int) -> float:
    parents = graph.parents[option]
    return 1 + min(_shortest_way_from_a_person(graph, parent) for parent in parents) if parents else 0


def _longest_way_from_a_person(graph: Graph, option: int) -> float:
    parents = graph.parents[option]
    return 1 + max(_longest_way_from_a_person(graph, parent) for parent in parents) if parents else 0


def _is_within_two_steps(graph: Graph, option: int) -> float:
    """One look at the root and one at the option: a child of the root stands before the option."""
    return any(parent in graph.children[graph.root] for parent in graph.parents[option])


OPTION_RULES: dict[str, OptionRule] = {
    "no child of a person": _is_child_of_no_person,
    "farther from any person": _shortest_way_from_a_person,
    "longer chain above it": _longest_way_from_a_person,
    "two steps from the root": _is_within_two_steps,
    "mentioned less often": lambda graph, option: -len(graph.parents[option]),
    "mentioned first": lambda _, option: -option,
    "last in the alphabet": lambda graph, option: ord(graph.idx_to_symbol[option][0]),
}
