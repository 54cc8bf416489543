"""ProsQA: which of two kinds is a person? A path through a graph of kinds says it, among many that lead elsewhere.

    Every shumpus is a rempus. Tom is a terpus. ... Is Tom a lempus or scrompus?        (one sentence an edge, shuffled)
    steps     Tom is a terpus. / Every terpus is a brimpus. / Every brimpus is a lempus.  (a shortest path)
    answer    Tom is a lempus.

Source: Hao et al., arXiv 2412.06769, appendix A.2 (algorithm 1), whose generator was never released. The algorithm as
printed does not give graphs like the 800 released ones (test and validation); the one below does, with the printed
numbers, and a test holds it to them. What is not printed (28 nodes, rules 2 and 3, who the candidates are) was found
from those graphs:

1. Nodes 0 and 1 stand alone. Every further node, of `num_nodes` in all, draws Poisson(1.5) parents among the nodes
   before it: with probability 0.35 among those that descend from 0 alone (0 itself included), else with probability 0.7
   among those that descend from 1 alone, else among all (two draws, not one of three sides: that is why the side of 1
   is the larger). Parents are drawn without replacement by weight 1.5·depth + 1; depth is the shortest distance from a
   node without parents. As printed, nodes that descend from neither are candidates in every case; then there would be
   seven times as many of them as there are.
2. Nodes without any edge are left out (of 28, about 5). Nodes without parents are persons, the others concepts.
3. The root is the one of 0 and 1 from which a leaf that the other does not reach is farther away; the target is that
   leaf; the other option a leaf that only the other reaches. Draws in which 0 or 1 has no edge or no such leaf are
   drawn again, as are those whose target is not `min_hops` to `max_hops` steps away, and the few with more nodes than
   there are names.
"""

import math
from random import Random

from pydantic import Field, model_validator

from pretrain.config.section import Section
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.task import Example, Task

# fmt: off
PERSONS = (
    "Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max", "Oliver", "Polly", "Rex", "Sally", "Sam",
    "Stella", "Tom", "Wren",
)
CONCEPTS = (
    "bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus", "grimpus", "gwompus",
    "hilpus", "impus", "jelpus", "jompus", "kerpus", "lempus", "lorpus", "numpus", "quimpus", "rempus", "rompus",
    "rorpus", "scrompus", "shumpus", "sterpus", "storpus", "terpus", "timpus", "tumpus", "vumpus", "worpus", "wumpus",
    "yerpus", "yimpus", "yumpus", "zhorpus", "zumpus",
)
# fmt: on

MEAN_PARENTS = 1.5
WEIGHT_PER_DEPTH = 1.5
FIRST_SIDE, SECOND_SIDE = 0.35, 0.7
"""Chance of parents that descend from 0 alone and, failing that, from 1 alone."""
BOTH_SIDES = 3
"""Label of a node that descends from both 0 and 1; 1 and 2: from 0, from 1 alone; 0: from neither."""

MAX_DRAWS = 1000
"""Graphs drawn for one example; at the default difficulty more than nine of ten do."""


class ProsQAParameters(Section):
    num_nodes: int = Field(default=28, ge=4, le=40)
    """Nodes drawn; those without an edge, a fifth of them, are then left out."""
    min_hops: int = Field(default=3, ge=1)
    """Fewest steps of the answer."""
    max_hops: int = Field(default=6, ge=1)
    """Most steps of the answer."""

    @model_validator(mode="after")
    def _check_hops(self) -> "ProsQAParameters":
        if self.min_hops > self.max_hops:
            raise ValueError(f"min_hops={self.min_hops} is more than max_hops={self.max_hops}")
        return self


class ProsQA(Task[ProsQAParameters]):
    name = "prosqa"
    parameters_type = ProsQAParameters

    def make(self, random: Random) -> Example:
        return write_example(self.draw_graph(random), random)

    def solve(self, question: str) -> str:
        return Graph.parse(question).answer

    def solve_in_steps(self, question: str) -> Example:
        """The question with its answer and the shortest chain of steps to it; of several, the question's first."""
        graph = Graph.parse(question)
        return Example(question, graph.chain(min(graph.shortest_paths())), graph.answer)

    def draw_graph(self, random: Random) -> Graph:
        """A graph, its nodes numbered in the order in which they were drawn.

        Raises:
            ValueError: graphs of the wanted size hardly ever have a path of the wanted length.
        """
        for _ in range(MAX_DRAWS):
            graph = self._try_graph(random)
            if graph:
                return graph
        wanted = self.parameters
        raise ValueError(
            f"task prosqa: none of {MAX_DRAWS} graphs of num_nodes={wanted.num_nodes} has a target "
            f"{wanted.min_hops} (min_hops) to {wanted.max_hops} (max_hops) steps away; set other hops, or more nodes"
        )

    def _try_graph(self, random: Random) -> Graph | None:
        drawn = _draw_parents(self.parameters.num_nodes, random)
        if not {0, 1} <= {parent for found in drawn for parent in found}:
            return None
        parents = _without_lonely(drawn)
        num_persons = sum(not found for found in parents)
        if num_persons > len(PERSONS) or len(parents) - num_persons > len(CONCEPTS):
            return None
        asked = _draw_question(parents, random)
        if asked is None or not self.parameters.min_hops <= asked[3] <= self.parameters.max_hops:
            return None
        root, target, neg_target, _ = asked
        persons = iter(random.sample(PERSONS, num_persons))
        concepts = iter(random.sample(CONCEPTS, len(parents) - num_persons))
        return Graph(
            idx_to_symbol=tuple(next(concepts if found else persons) for found in parents),
            edges=tuple((parent, child) for child, found in enumerate(parents) for parent in found),
            root=root,
            target=target,
            neg_target=neg_target,
        )


def write_example(graph: Graph, random: Random) -> Example:
    """The text of a graph: sentences and options in random order, steps along a random one of the shortest paths."""
    sentences = [graph.sentence(*edge) for edge in graph.edges]
    random.shuffle(sentences)
    options = [graph.idx_to_symbol[graph.target], graph.idx_to_symbol[graph.neg_target]]
    random.shuffle(options)
    question = f"{' '.join(sentences)} Is {graph.idx_to_symbol[graph.root]} a {options[0]} or {options[1]}?"
    return Example(question, graph.chain(random.choice(graph.shortest_paths())), graph.answer)


def _draw_parents(num_nodes: int, random: Random) -> list[list[int]]:
    """Parents of every node, by the first rule of the module's text."""
    parents: list[list[int]] = [[], []]
    labels, weights = [1, 2], [1.0, 1.0]
    for node in range(2, num_nodes):
        count = _draw_poisson(MEAN_PARENTS, random)
        side = 1 if random.random() <= FIRST_SIDE else 2 if random.random() <= SECOND_SIDE else None
        candidates = [other for other in range(node) if side is None or labels[other] == side]
        found: list[int] = []
        for _ in range(min(count, len(candidates))):
            found += random.choices(candidates, [weights[other] for other in candidates])
            candidates.remove(found[-1])
        parents.append(found)
        # One step deeper than the nearest parent: its weight and the weight of a step.
        weights.append(min((weights[parent] for parent in found), default=1 - WEIGHT_PER_DEPTH) + WEIGHT_PER_DEPTH)
        label = 0
        for parent in found:
            label |= labels[parent]
        labels.append(label)
    return parents


def _draw_poisson(mean: float, random: Random) -> int:
    """A Poisson number, by the product of uniform ones."""
    count, product, end = 0, random.random(), math.exp(-mean)
    while product > end:
        count, product = count + 1, product * random.random()
    return count


def _without_lonely(parents: list[list[int]]) -> list[list[int]]:
    """The same graph without nodes that have no edge, renumbered in the same order."""
    connected = {parent for found in parents for parent in found}
    kept = [node for node, found in enumerate(parents) if found or node in connected]
    number = {node: place for place, node in enumerate(kept)}
    return [[number[parent] for parent in parents[node]] for node in kept]


def _draw_question(parents: list[list[int]], random: Random) -> tuple[int, int, int, int] | None:
    """Root, target, other option and hops from root to target; None where a root has no leaf of its own."""
    leaves = set(range(len(parents))) - {parent for found in parents for parent in found}
    distances = [_distances_down(parents, start) for start in (0, 1)]
    own = [
        sorted(leaf for leaf in leaves if leaf in distances[side] and leaf not in distances[1 - side])
        for side in (0, 1)
    ]
    if not own[0] or not own[1]:
        return None
    farthest = [max(distances[side][leaf] for leaf in own[side]) for side in (0, 1)]
    root = random.randrange(2) if farthest[0] == farthest[1] else int(farthest[1] > farthest[0])
    target = random.choice([leaf for leaf in own[root] if distances[root][leaf] == farthest[root]])
    return root, target, random.choice(own[1 - root]), farthest[root]


def _distances_down(parents: list[list[int]], start: int) -> dict[int, int]:
    """Shortest distance from `start` to every node that it reaches; parents come before their children."""
    distances = {start: 0}
    for node, found in enumerate(parents):
        near = [distances[parent] for parent in found if parent in distances]
        if near:
            distances[node] = 1 + min(near)
    return distances
