"""ProsQA without words: the same graphs (`pretrain/tasks/prosqa/prosqa.py`), one symbol per node, three per edge.

    Dk,ab,Ak,ka,bc,Bf,...?Acf      is A, who is a k, a c or an f?
    steps     Ak, ka, ac           (a shortest path)
    answer    =Ac

For small models: a question of 36 edges is 111 tokens instead of about 250. Upper-case letters up to Q are persons, the
other symbols concepts. Zhu et al. ("Reasoning by superposition", arXiv 2505.12514) use tokenised graphs of this kind.
"""

import re
from itertools import pairwise
from random import Random

from pretrain.tasks.graph_form import GraphForm, Step
from pretrain.tasks.prosqa.option_rules import option_shortcuts
from pretrain.tasks.prosqa.prosqa import CONCEPTS, PERSONS, ProsQA, ProsQAParameters
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.task import Example, Rule, Size, Task

PERSON_SYMBOLS = "ABCDEFGHIJKLMNOPQ"
CONCEPT_SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789YZ"
_QUESTION = re.compile(r"((?:[A-Qa-z0-9YZ][a-z0-9YZ],)+)\?([A-Q])([a-z0-9YZ])([a-z0-9YZ])")

assert (len(PERSON_SYMBOLS), len(CONCEPT_SYMBOLS)) == (len(PERSONS), len(CONCEPTS))
_SYMBOL_OF: dict[str, str] = dict(zip((*PERSONS, *CONCEPTS), PERSON_SYMBOLS + CONCEPT_SYMBOLS, strict=True))


class SymbolForm(GraphForm):
    """Ak, ka,"""

    def graph(self, question: str) -> Graph:
        return parse_graph(question)

    def opening(self, graph: Graph) -> str:
        return ""

    def spelt(self, name: str) -> str:
        return name

    def sentence(self, graph: Graph, text: str) -> Step | None:
        return Step(*text) if len(text) == 2 else None


class ProsQASymbolic(Task[ProsQAParameters]):
    name = "prosqa_symbolic"
    parameters_type = ProsQAParameters
    graph_form = SymbolForm()
    question_end = ""
    step_end = ","
    answer_start = "="

    def __init__(self, parameters: ProsQAParameters) -> None:
        super().__init__(parameters)
        self._graphs = ProsQA(parameters)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        names = *self.parameters.persons, *self.parameters.concepts
        return (*map(_SYMBOL_OF.__getitem__, names), ",", "?", "=")

    @property
    def shortcuts(self) -> dict[str, Rule]:
        return {
            **option_shortcuts(
                parse_graph, lambda graph, option: graph.idx_to_symbol[graph.root] + graph.idx_to_symbol[option]
            ),
            "first option": lambda question: [question[-3:-1]],
        }

    def options(self, question: str) -> tuple[str, str]:
        person, *options = question[-3:]
        return person + options[0], person + options[1]

    def make(self, random: Random) -> Example:
        graph = self._graphs.draw_graph(random)
        symbols = [_SYMBOL_OF[name] for name in graph.idx_to_symbol]
        edges = [symbols[parent] + symbols[child] for parent, child in graph.edges]
        random.shuffle(edges)
        options = [symbols[graph.target], symbols[graph.neg_target]]
        random.shuffle(options)
        path = random.choice(graph.shortest_paths())
        question = f"{''.join(f'{edge},' for edge in edges)}?{symbols[graph.root]}{''.join(options)}"
        steps = tuple(symbols[parent] + symbols[child] for parent, child in pairwise(path))
        return Example(question, steps, symbols[graph.root] + symbols[graph.target])

    def longest(self, size: Size) -> Example:
        return Example("ab," * self.parameters.most_edges + "?Abc", ("ab",) * self.parameters.max_hops, "Ab")

    def solve(self, question: str) -> str:
        graph = parse_graph(question)
        return graph.idx_to_symbol[graph.root] + graph.idx_to_symbol[graph.target]


def parse_graph(question: str) -> Graph:
    """The graph of a question, with nodes numbered in the order of their first mention.

    Raises:
        ValueError: the text has another form, or the root does not reach exactly one of the options.
    """
    match = _QUESTION.fullmatch(question)
    if not match:
        raise ValueError(f"not of the form 'Ab,bc,de,?Ace': {question[-60:]!r}")
    nodes: dict[str, int] = {}
    edges = [
        (nodes.setdefault(edge[0], len(nodes)), nodes.setdefault(edge[1], len(nodes)))
        for edge in match[1][:-1].split(",")
    ]
    root, first, second = (nodes.setdefault(symbol, len(nodes)) for symbol in match.groups()[1:])
    return Graph.asked(tuple(nodes), edges, root, (first, second))
