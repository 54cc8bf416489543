"""ProsQA: which of two concepts is a person? One path through a graph of concepts leads to the answer.

    Every shumpus is a rempus. Tom is a terpus. ... Is Tom a lempus or scrompus?      (one sentence per edge, shuffled)
    steps     Tom is a terpus. / Every terpus is a brimpus. / Every brimpus is a lempus.  (a shortest path)
    answer    Tom is a lempus.

Source: Hao et al., arXiv 2412.06769, appendix A.2 (algorithm 1), whose generator was never released. The algorithm as
printed does not give graphs like the 800 released ones (test and validation). The one below does, with the printed
numbers; a test compares it with them. What the paper does not print (28 nodes, rules 2 and 3, the sets of candidates)
was inferred from those graphs:

1. Nodes 0 and 1 have no parents. Each further node, up to `num_nodes` in total, draws Poisson(1.5) parents among the
   nodes before it: with probability 0.35 among those that descend only from 0 (including 0), else with probability 0.7
   among those that descend only from 1, else among all. These are two draws, so the side of 1 is the larger. Parents
   are drawn without replacement with weight 1.5·depth + 1, where depth is the shortest distance from a node without
   parents. As printed, nodes that descend from neither are always candidates; that would give seven times as many of
   them as in the released graphs.
2. Nodes without any edge are left out (about 5 of 28). Nodes without parents are persons, the others concepts.
3. Consider the leaves that only one of 0 and 1 reaches. The farthest of them is the target, and 0 or 1, whichever
   reaches it, is the root; the other option is a leaf that only the other one reaches. A graph is drawn again if 0 or 1
   has no edge or no such leaf, if the target is not `min_hops` to `max_hops` steps away, or if there are more nodes
   than names.

In these graphs the target is mostly the deeper option, so a rule that never looks at the root finds it: the option
farther from any person is right in 91.6 % of the 800 released questions. With `distractor=same_depth` rule 3 becomes:
both options are equally far from their own one of 0 and 1, and equally far from the nearest person, as far as two
leaves of the graph can be; a coin makes 0 or 1 the root. Whatever a rule finds out about the options without the root
is then right half of the time.
"""

import math
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from pretrain.schema.section import Section
from pretrain.tasks.prosqa.option_rules import option_shortcuts
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.task import Example, Rule, Size, Task

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
_NO_PARENTS = math.exp(-MEAN_PARENTS)
WEIGHT_PER_DEPTH = 1.5
FIRST_SIDE, SECOND_SIDE = 0.35, 0.7
"""Probability that parents descend only from 0 and, failing that, only from 1."""

EDGES_PER_NODE = 3
"""A graph of more edges, about one in 10 billion at the default difficulty, is drawn again: so there is a longest."""
MAX_DRAWS = 4000
"""Most graphs drawn for one example; at the default difficulty more than 9 of 10 can be used, at the smallest size of a
shipped configuration one of 90."""


class ProsQAParameters(Section):
    num_nodes: int = Field(default=28, ge=4, le=40)
    """Nodes drawn; those without an edge, about a fifth, are then left out."""
    min_hops: int = Field(default=3, ge=1)
    """Fewest edges from the root to the target."""
    max_hops: int = Field(default=6, ge=1)
    """Most edges from the root to the target."""
    distractor: Literal["any_leaf", "same_depth"] = "any_leaf"
    """The wrong option: any_leaf = any leaf of its side, as released; same_depth = one as deep as the target, so that
    only a search from the root tells them apart."""

    @property
    def most_edges(self) -> int:
        """Edges of a graph at most: every node after the first two has one from each before it, or the limit."""
        all_pairs = self.num_nodes * (self.num_nodes - 1) // 2 - 1
        return min(all_pairs, EDGES_PER_NODE * self.num_nodes)

    @model_validator(mode="after")
    def _check_hops(self) -> "ProsQAParameters":
        if self.min_hops > self.max_hops:
            raise ValueError(f"min_hops={self.min_hops} is more than max_hops={self.max_hops}")
        return self


class ProsQA(Task[ProsQAParameters]):
    name = "prosqa"
    parameters_type = ProsQAParameters
    is_prose = True

    @property
    def shortcuts(self) -> dict[str, Rule]:
        return {
            **option_shortcuts(Graph.parse, lambda graph, option: graph.sentence(graph.root, option)),
            "first option": lambda question: [re.sub(r".* Is (\w+) a (\w+) or .*", r"\1 is a \2.", question)],
        }

    def options(self, question: str) -> tuple[str, str]:
        graph = Graph.parse(question)
        return graph.sentence(graph.root, graph.target), graph.sentence(graph.root, graph.neg_target)

    def make(self, random: Random) -> Example:
        return write_example(self.draw_graph(random), random)

    def longest(self, size: Size) -> Example:
        person = max(PERSONS, key=lambda name: size(f" {name} is"))
        first, second, last, every = (
            max(CONCEPTS, key=lambda name, form=form: size(form.format(name)))
            for form in (" a {} or", " {}?", " a {}.", " Every {} is")
        )
        facts = [f"{person} is a {last}.", f"Every {every} is a {last}."]
        sentence = max(facts, key=lambda text: size(f" {text}"))
        sentences = " ".join([sentence] * self.parameters.most_edges)
        step = max(facts, key=size)
        question = f"{sentences} Is {person} a {first} or {second}?"
        return Example(question, (step,) * self.parameters.max_hops, facts[0])

    def solve(self, question: str) -> str:
        return Graph.parse(question).answer

    def solve_in_steps(self, question: str) -> Example:
        """The question with its answer and its shortest chain of steps, the first by node number if several tie."""
        graph = Graph.parse(question)
        return Example(question, graph.chain(min(graph.shortest_paths())), graph.answer)

    def draw_graph(self, random: Random) -> Graph:
        """Draw a graph, with nodes numbered in the order of drawing.

        Raises:
            ValueError: graphs with `num_nodes` hardly ever have a path of the requested length.
        """
        for _ in range(MAX_DRAWS):
            if graph := self._try_graph(random):
                return graph
        wanted = self.parameters
        raise ValueError(
            f"task prosqa: none of {MAX_DRAWS} graphs of num_nodes={wanted.num_nodes} has a target "
            f"{wanted.min_hops} (min_hops) to {wanted.max_hops} (max_hops) steps away; set other hops, or more nodes"
        )

    def _try_graph(self, random: Random) -> Graph | None:
        drawn = _draw_parents(self.parameters.num_nodes, random)
        if sum(map(len, drawn)) > self.parameters.most_edges:
            return None
        if not {0, 1} <= {parent for of_node in drawn for parent in of_node}:
            return None
        parents = _without_isolated(drawn)
        num_persons = sum(not of_node for of_node in parents)
        if num_persons > len(PERSONS) or len(parents) - num_persons > len(CONCEPTS):
            return None
        hops = range(self.parameters.min_hops, self.parameters.max_hops + 1)
        draw = {"any_leaf": _draw_question, "same_depth": _draw_question_of_one_depth}[self.parameters.distractor]
        asked = draw(parents, hops, random)
        if asked is None:
            return None
        root, target, neg_target = asked
        persons = iter(random.sample(PERSONS, num_persons))
        concepts = iter(random.sample(CONCEPTS, len(parents) - num_persons))
        names = tuple(next(concepts if of_node else persons) for of_node in parents)
        edges = tuple((parent, child) for child, of_node in enumerate(parents) for parent in of_node)
        return Graph(idx_to_symbol=names, edges=edges, root=root, target=target, neg_target=neg_target)


def write_example(graph: Graph, random: Random) -> Example:
    """The text of a graph: sentences and options in random order, steps along a random shortest path."""
    sentences = [graph.sentence(*edge) for edge in graph.edges]
    random.shuffle(sentences)
    options = [graph.idx_to_symbol[graph.target], graph.idx_to_symbol[graph.neg_target]]
    random.shuffle(options)
    question = f"{' '.join(sentences)} Is {graph.idx_to_symbol[graph.root]} a {options[0]} or {options[1]}?"
    return Example(question, graph.chain(random.choice(graph.shortest_paths())), graph.answer)


def _draw_parents(num_nodes: int, random: Random) -> list[list[int]]:
    """Parents of every node, by rule 1 of the module."""
    parents: list[list[int]] = [[], []]
    labels, weights = [1, 2], [1.0, 1.0]  # label: bit 0 if the node descends from node 0, bit 1 if from node 1
    of_label: dict[int | None, list[int]] = {None: [0, 1], 0: [], 1: [0], 2: [1], 3: []}
    for node in range(2, num_nodes):
        count = _draw_num_parents(random)
        side = 1 if random.random() <= FIRST_SIDE else 2 if random.random() <= SECOND_SIDE else None
        candidates = of_label[side].copy()
        chosen: list[int] = []
        for _ in range(min(count, len(candidates))):
            chosen.append(_draw_weighted(candidates, weights, random))
            candidates.remove(chosen[-1])
        parents.append(chosen)
        # one level deeper than the shallowest parent; a node without parents gets weight 1
        weights.append(min((weights[parent] for parent in chosen), default=1 - WEIGHT_PER_DEPTH) + WEIGHT_PER_DEPTH)
        label = 0
        for parent in chosen:
            label |= labels[parent]
        labels.append(label)
        of_label[label].append(node)
        of_label[None].append(node)
    return parents


def _draw_weighted(candidates: list[int], weights: list[float], random: Random) -> int:
    """What `random.choices` draws, in half of its time."""
    total = 0.0
    sums = [total := total + weights[node] for node in candidates]
    return candidates[min(bisect(sums, random.random() * total), len(sums) - 1)]


def _draw_num_parents(random: Random) -> int:
    """A Poisson variate of `MEAN_PARENTS`, from a product of uniform ones (Knuth)."""
    count, product = 0, random.random()
    while product > _NO_PARENTS:
        count, product = count + 1, product * random.random()
    return count


def _without_isolated(parents: list[list[int]]) -> list[list[int]]:
    """The graph without its nodes that have no edge, renumbered in the same order."""
    connected = {parent for of_node in parents for parent in of_node}
    kept = [node for node, of_node in enumerate(parents) if of_node or node in connected]
    number = {node: place for place, node in enumerate(kept)}
    return [[number[parent] for parent in parents[node]] for node in kept]


def _own_leaves(parents: list[list[int]], distances: Sequence[dict[int, int]]) -> list[list[int]]:
    """The leaves that only node 0 reaches, and those that only node 1 reaches; `distances` are those from 0 and 1."""
    leaves = set(range(len(parents))) - {parent for of_node in parents for parent in of_node}
    return [sorted((leaves & distances[side].keys()) - distances[1 - side].keys()) for side in (0, 1)]


def _draw_question(parents: list[list[int]], hops: range, random: Random) -> tuple[int, int, int] | None:
    """Root, target and other option by rule 3 of the module; None if there are none."""
    distances = [_distances_down(parents, [start]) for start in (0, 1)]
    own = _own_leaves(parents, distances)
    if not own[0] or not own[1]:
        return None
    farthest = [max(distances[side][leaf] for leaf in own[side]) for side in (0, 1)]
    root = random.randrange(2) if farthest[0] == farthest[1] else int(farthest[1] > farthest[0])
    target = random.choice([leaf for leaf in own[root] if distances[root][leaf] == farthest[root]])
    neg_target = random.choice(own[1 - root])
    return (root, target, neg_target) if farthest[root] in hops else None


def _draw_question_of_one_depth(parents: list[list[int]], hops: range, random: Random) -> tuple[int, int, int] | None:
    """As `_draw_question`, by the rule for `distractor=same_depth`."""
    distances: list[dict[int, int]] = []
    for start in (0, 1):
        distances.append(_distances_down(parents, [start]))
        if max(distances[start].values()) < hops.start:  # true of most small graphs, and told soon
            return None
    from_persons = _distances_down(parents, [node for node, of_node in enumerate(parents) if not of_node])
    by_depth: list[defaultdict[tuple[int, int], list[int]]] = [defaultdict(list), defaultdict(list)]
    for side, leaves in enumerate(_own_leaves(parents, distances)):
        for leaf in leaves:
            if distances[side][leaf] in hops:
                by_depth[side][distances[side][leaf], from_persons[leaf]].append(leaf)
    shared = by_depth[0].keys() & by_depth[1].keys()
    if not shared:
        return None
    options = [random.choice(of_side[max(shared)]) for of_side in by_depth]
    root = random.randrange(2)
    return root, options[root], options[1 - root]


def _distances_down(parents: list[list[int]], starts: list[int]) -> dict[int, int]:
    """Shortest distance to every node that `starts`, which have no parents, reach; parents have lower numbers than
    children."""
    distances = dict.fromkeys(starts, 0)
    for node, of_node in enumerate(parents):
        if above := [distances[parent] for parent in of_node if parent in distances]:
            distances[node] = 1 + min(above)
    return distances
