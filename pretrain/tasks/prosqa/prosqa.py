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
from random import Random
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from pretrain.schema.section import Section
from pretrain.tasks.graph_form import GraphForm, Step
from pretrain.tasks.prosqa.option_rules import option_shortcuts
from pretrain.tasks.prosqa.prosqa_graph import SENTENCE, Graph
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
    num_persons: int = Field(default=len(PERSONS), ge=2, le=len(PERSONS))
    """Names of persons, the first of the list; a graph with more of them is drawn again."""
    num_concepts: int = Field(default=len(CONCEPTS), ge=2, le=len(CONCEPTS))
    """Names of concepts, likewise. Few names are learnt in fewer examples."""

    max_edges: int | None = Field(default=None, ge=4)
    """A graph with more edges is drawn again, so that the longest example is not much longer than most. Default: 3 a
    node, which hardly any graph has."""

    @property
    def persons(self) -> tuple[str, ...]:
        return PERSONS[: self.num_persons]

    @property
    def concepts(self) -> tuple[str, ...]:
        return CONCEPTS[: self.num_concepts]

    @property
    def most_edges(self) -> int:
        """Edges of a graph at most: every node after the first two has one from each before it, or the limit."""
        all_pairs = self.num_nodes * (self.num_nodes - 1) // 2 - 1
        return min(all_pairs, self.max_edges or EDGES_PER_NODE * self.num_nodes)

    @model_validator(mode="after")
    def _check_hops(self) -> "ProsQAParameters":
        if self.min_hops > self.max_hops:
            raise ValueError(f"min_hops={self.min_hops} is more than max_hops={self.max_hops}")
        return self


class WordForm(GraphForm):
    """Tom is a terpus. / Every terpus is a brimpus."""

    def graph(self, question: str) -> Graph:
        return Graph.parse(question)

    def opening(self, graph: Graph) -> str:
        return "Every"

    def spelt(self, name: str) -> str:
        return f" {name}"

    def sentence(self, graph: Graph, text: str) -> Step | None:
        match = SENTENCE.fullmatch(text)
        return Step(match[1] or match[2], match[3]) if match else None


class ProsQA(Task[ProsQAParameters]):
    name = "prosqa"
    parameters_type = ProsQAParameters
    graph_form = WordForm()
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
        person = max(self.parameters.persons, key=lambda name: size(f" {name} is"))
        first, second, last, every = (
            max(self.parameters.concepts, key=lambda name, form=form: size(form.format(name)))
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
            f"task prosqa: none of {MAX_DRAWS} graphs of num_nodes={wanted.num_nodes} has a target {wanted.min_hops} "
            f"(min_hops) to {wanted.max_hops} (max_hops) steps away and names for all; set other hops, or more nodes "
            "or names"
        )

    def _try_graph(self, random: Random) -> Graph | None:
        wanted = self.parameters
        drawn = _draw_nodes(wanted.num_nodes, random)
        # What can be refused without a further random number is refused first: of small graphs that is most.
        hops = range(wanted.min_hops, wanted.max_hops + 1)
        is_one_depth = wanted.distractor == "same_depth"
        leaves = _leaves_of_one_depth(drawn, hops) if is_one_depth else _own_leaves(drawn)
        if not all(leaves) or sum(map(len, drawn.parents)) > wanted.most_edges:
            return None
        kept = [node for node, of_node in enumerate(drawn.parents) if of_node or node in drawn.with_child]
        num_persons = sum(not drawn.parents[node] for node in kept)
        if num_persons > wanted.num_persons or len(kept) - num_persons > wanted.num_concepts:
            return None
        if is_one_depth:
            options = [random.choice(of_side) for of_side in leaves]
            root = random.randrange(2)
            asked = root, options[root], options[1 - root]
        else:
            asked = _draw_farthest(drawn, leaves, hops, random)
        if asked is None:
            return None
        persons = iter(random.sample(wanted.persons, num_persons))
        concepts = iter(random.sample(wanted.concepts, len(kept) - num_persons))
        names = tuple(next(concepts if drawn.parents[node] else persons) for node in kept)
        number = {node: place for place, node in enumerate(kept)}
        edges = tuple((number[parent], number[child]) for child in kept for parent in drawn.parents[child])
        root, target, neg_target = (number[node] for node in asked)
        return Graph(idx_to_symbol=names, edges=edges, root=root, target=target, neg_target=neg_target)


def write_example(graph: Graph, random: Random) -> Example:
    """The text of a graph: sentences and options in random order, steps along a random shortest path."""
    sentences = [graph.sentence(*edge) for edge in graph.edges]
    random.shuffle(sentences)
    options = [graph.idx_to_symbol[graph.target], graph.idx_to_symbol[graph.neg_target]]
    random.shuffle(options)
    question = f"{' '.join(sentences)} Is {graph.idx_to_symbol[graph.root]} a {options[0]} or {options[1]}?"
    return Example(question, graph.chain(random.choice(graph.shortest_paths())), graph.answer)


class _Drawn(NamedTuple):
    """Nodes with their parents, by rule 1 of the module."""

    parents: list[list[int]]
    """Of every node, all of lower number."""
    sides: tuple[list[int], list[int]]
    """The nodes that descend only from 0, itself included, and those that descend only from 1."""
    weights: list[float]
    """1.5·depth + 1 of every node."""

    @property
    def with_child(self) -> set[int]:
        return set().union(*self.parents)


def _draw_nodes(num_nodes: int, random: Random) -> _Drawn:
    """Draw nodes. Nearly all the time of an example is spent here: so parents are found in running sums of the
    candidates' weights that are kept from node to node. The sums are exact, being multiples of a half."""
    uniform = random.random
    parents: list[list[int]] = [[], []]
    weights, labels = [1.0, 1.0], [1, 2]  # label: bit 0 if the node descends from node 0, bit 1 if from node 1
    of_label, sums_of_label = {1: [0], 2: [1]}, {1: [1.0], 2: [1.0]}
    everyone, sums_of_everyone = [0, 1], [1.0, 2.0]
    for node in range(2, num_nodes):
        count, product = 0, uniform()  # a Poisson variate of MEAN_PARENTS from a product of uniform ones (Knuth)
        while product > _NO_PARENTS:
            count += 1
            product *= uniform()
        if uniform() <= FIRST_SIDE:
            candidates, sums = of_label[1], sums_of_label[1]
        elif uniform() <= SECOND_SIDE:
            candidates, sums = of_label[2], sums_of_label[2]
        else:
            candidates, sums = everyone, sums_of_everyone
        chosen: list[int] = []
        label, nearest = 0, math.inf
        for left in range(min(count, len(candidates)), 0, -1):
            place = bisect(sums, uniform() * sums[-1])
            parent = candidates[place]
            chosen.append(parent)
            label |= labels[parent]
            weight = weights[parent]
            if weight < nearest:
                nearest = weight
            if left > 1:
                candidates = candidates[:place] + candidates[place + 1 :]
                sums = sums[:place] + [total - weight for total in sums[place + 1 :]]
        parents.append(chosen)
        # one level deeper than the shallowest parent; a node without parents gets weight 1
        weight = nearest + WEIGHT_PER_DEPTH if chosen else 1.0
        weights.append(weight)
        labels.append(label)
        if label == 1 or label == 2:
            of_label[label].append(node)
            sums_of_label[label].append(sums_of_label[label][-1] + weight)
        everyone.append(node)
        sums_of_everyone.append(sums_of_everyone[-1] + weight)
    return _Drawn(parents, (of_label[1], of_label[2]), weights)


def _own_leaves(drawn: _Drawn) -> list[list[int]]:
    """The leaves that only node 0 reaches, and those that only node 1 reaches; none if either has no edge."""
    inner = drawn.with_child
    if not {0, 1} <= inner:
        return [[], []]
    return [[node for node in side if node not in inner] for side in drawn.sides]


def _leaves_of_one_depth(drawn: _Drawn, hops: range) -> list[list[int]]:
    """Leaves of both sides that are equally far from their own one of 0 and 1, and equally far from the nearest person,
    as far as two leaves can be; none if there are none."""
    none: list[list[int]] = [[], []]
    if len(drawn.sides[0]) <= hops.start or len(drawn.sides[1]) <= hops.start:
        return none  # too few nodes for a path, as in most small graphs
    distances: list[dict[int, int]] = []
    for side in (0, 1):
        distances.append(_distances(drawn, side))
        if max(distances[side].values()) < hops.start:
            return none
    by_depth: list[defaultdict[tuple[int, float], list[int]]] = [defaultdict(list), defaultdict(list)]
    for of_side, leaves, near in zip(by_depth, _own_leaves(drawn), distances, strict=True):
        for leaf in leaves:
            if near[leaf] in hops:
                of_side[near[leaf], drawn.weights[leaf]].append(leaf)
    shared = by_depth[0].keys() & by_depth[1].keys()
    return [of_side[max(shared)] for of_side in by_depth] if shared else none


def _draw_farthest(
    drawn: _Drawn, leaves: list[list[int]], hops: range, random: Random
) -> tuple[int, int, int] | None:  # fmt: skip
    """Root, target and other option by rule 3 of the module; None if the target is not that many steps away."""
    distances = [_distances(drawn, side) for side in (0, 1)]
    farthest = [max(distances[side][leaf] for leaf in leaves[side]) for side in (0, 1)]
    root = random.randrange(2) if farthest[0] == farthest[1] else int(farthest[1] > farthest[0])
    target = random.choice([leaf for leaf in leaves[root] if distances[root][leaf] == farthest[root]])
    neg_target = random.choice(leaves[1 - root])
    return (root, target, neg_target) if farthest[root] in hops else None


def _distances(drawn: _Drawn, side: int) -> dict[int, int]:
    """Shortest distance from node 0 or 1, the `side`, to every node that descends only from it: all ancestors of such a
    node that the side reaches are of this kind."""
    distances = {side: 0}
    for node in drawn.sides[side][1:]:
        distances[node] = 1 + min(distances[parent] for parent in drawn.parents[node] if parent in distances)
    return distances
