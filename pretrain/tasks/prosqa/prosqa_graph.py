"""The graph behind a ProsQA question: persons, concepts, and the "is a" edges between them.

A node is a person ("Sally") or a concept ("gerpus"). An edge from a to b is one sentence: "Sally is a gerpus." if a is
a person, "Every gerpus is a terpus." if it is a concept. The question asks which of two concepts a person is: the
one that the person reaches. The text holds the whole graph except the numbers of its nodes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

SENTENCE = re.compile(r"(?:Every ([a-z]+)|([A-Z][a-z]*)) is a ([a-z]+)\.")
_QUERY = re.compile(r"Is ([A-Z][a-z]*) a ([a-z]+) or ([a-z]+)\?")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An acyclic graph with a question about it; the fields are those of the released files."""

    idx_to_symbol: tuple[str, ...]
    """Name of each node."""
    edges: tuple[tuple[int, int], ...]
    """(from, to) of every sentence."""
    root: int
    """The person the question is about."""
    target: int
    """The concept that is the answer, reachable from the root."""
    neg_target: int
    """The other concept offered, not reachable from the root."""

    def __post_init__(self) -> None:
        size = len(self.idx_to_symbol)
        if len(set(self.idx_to_symbol)) < size:
            raise ValueError("two nodes have the same name")
        for node in (*(end for edge in self.edges for end in edge), self.root, self.target, self.neg_target):
            if not 0 <= node < size:
                raise ValueError(f"no node {node}: there are {size}")
        distances = self.distances(self.root)
        if distances[self.target] is None or distances[self.neg_target] is not None:
            names = [self.idx_to_symbol[node] for node in (self.root, self.target, self.neg_target)]
            raise ValueError("{} must reach the target {} and not the other option {}".format(*names))

    @classmethod
    def parse(cls, question: str) -> "Graph":
        """The graph of a question, with nodes numbered by first mention (released files number them as drawn).

        Raises:
            ValueError: a sentence has another form, or the root does not reach exactly one of the options.
        """
        facts, cut, query = question.rpartition(" Is ")
        asked = _QUERY.fullmatch("Is " + query)
        if not cut or not asked:
            raise ValueError(f"does not end with a question such as 'Is Tom a lempus or scrompus?': {question[-60:]!r}")
        nodes: dict[str, int] = {}
        edges: list[tuple[int, int]] = []
        for sentence in re.split(r"(?<=\.) ", facts):
            fact = SENTENCE.fullmatch(sentence)
            if not fact:
                raise ValueError(f"not of the form 'Tom is a lempus.' or 'Every lempus is a scrompus.': {sentence!r}")
            parent, child = (nodes.setdefault(name, len(nodes)) for name in (fact[1] or fact[2], fact[3]))
            edges.append((parent, child))
        root, first, second = (nodes.setdefault(name, len(nodes)) for name in asked.groups())
        return cls.asked(tuple(nodes), edges, root, (first, second))

    @classmethod
    def asked(
        cls, idx_to_symbol: tuple[str, ...], edges: Sequence[tuple[int, int]], root: int, options: tuple[int, int]
    ) -> "Graph":
        """The graph of a question with two options; the target is the one that the root reaches. Raises as `parse`."""
        distances = _distances(_children(len(idx_to_symbol), edges), root)
        # if the root reaches both or neither, __post_init__ raises
        target, neg_target = options if distances[options[0]] is not None else options[::-1]
        return cls(idx_to_symbol=idx_to_symbol, edges=tuple(edges), root=root, target=target, neg_target=neg_target)

    @cached_property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes with an edge to it, in the order of `edges`."""
        return _children(len(self.idx_to_symbol), [(child, parent) for parent, child in self.edges])

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes its edges lead to, in the order of `edges`."""
        return _children(len(self.idx_to_symbol), self.edges)

    def distances(self, start: int) -> tuple[int | None, ...]:
        """Number of edges on a shortest path from `start` to each node; None for unreachable nodes."""
        return _distances(self.children, start)

    def shortest_paths(self) -> list[tuple[int, ...]]:
        """All shortest paths from root to target, as nodes including both ends."""
        distances, paths = self.distances(self.root), [(self.target,)]
        for hops in reversed(range(distances[self.target] or 0)):
            steps = [(parent, path) for path in paths for parent in self.parents[path[0]] if distances[parent] == hops]
            paths = [(parent, *path) for parent, path in steps]
        return paths

    def sentence(self, parent: int, child: int) -> str:
        """The sentence of an edge."""
        name = self.idx_to_symbol[parent]
        return f"{name if name[0].isupper() else 'Every ' + name} is a {self.idx_to_symbol[child]}."

    def chain(self, path: tuple[int, ...]) -> tuple[str, ...]:
        """The sentences along a path."""
        return tuple(self.sentence(parent, child) for parent, child in pairwise(path))

    @property
    def answer(self) -> str:
        return self.sentence(self.root, self.target)


def _children(size: int, edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    children: list[list[int]] = [[] for _ in range(size)]
    for parent, child in edges:
        children[parent].append(child)
    return tuple(map(tuple, children))


def _distances(children: Sequence[Sequence[int]], start: int) -> tuple[int | None, ...]:
    distances: list[int | None] = [None] * len(children)
    distances[start] = 0
    level, length = [start], 0
    while level:
        length += 1
        level = [child for node in level for child in children[node]]
        level = [child for child in dict.fromkeys(level) if distances[child] is None]
        for child in level:
            distances[child] = length
    return tuple(distances)
