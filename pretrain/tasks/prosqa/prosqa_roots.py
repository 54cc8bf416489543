"""Reading the graphs of ProsQA: which person does each node come from?

    Dk,ab,Ak,ka,bc,Bf,...?bfkA...        every node, in random order
    prefixes  DD.aa.AA.AA.AA.BB....AB AA (one symbol for each of the question; a dot: none)
    answer    A                          (of the last)

The graphs and symbols are those of `prosqa_symbolic`. A node comes from where its parents lead: from parent to parent,
of several the one read last, up to a node that has none. The answer to a prefix that ends in an edge is the same for
the parent of the edge, as far as the graph has been read. So there is something to learn from every edge and node, from
no hop on. From the answer of a ProsQA question, or from its chain, models of a few layers hardly learn to look up an
edge; models that have learnt it here can be asked ProsQA questions (`configs/tasks/prosqa_roots_small.yaml`).
"""

import re
from collections.abc import Mapping
from random import Random

from pretrain.tasks.prosqa.prosqa import ProsQAParameters
from pretrain.tasks.prosqa.prosqa_symbolic import ProsQASymbolic
from pretrain.tasks.task import Example, Rule, Size, Task

_QUESTION = re.compile(r"((?:[A-Qa-z0-9YZ][a-z0-9YZ],)+)\?([A-Qa-z0-9YZ]+)")


class ProsQARoots(Task[ProsQAParameters]):
    name = "prosqa_roots"
    parameters_type = ProsQAParameters
    question_end = ""
    answer_start = ""

    def __init__(self, parameters: ProsQAParameters) -> None:
        super().__init__(parameters)
        self._questions = ProsQASymbolic(parameters)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self._questions.vocabulary

    @property
    def shortcuts(self) -> dict[str, Rule]:
        def one_hop(question: str) -> list[str]:
            edges, asked = _parts(question)
            parent_of = {child: parent for parent, child in edges}
            return [parent_of.get(asked[-1], asked[-1])]

        return {
            "the node itself": lambda question: question[-1:],
            "its parent": one_hop,
            "the first person": lambda question: re.findall("[A-Q]", question)[:1],
        }

    def make(self, random: Random) -> Example:
        edges, cut, _ = self._questions.make(random).question.partition("?")
        nodes = sorted({*edges} - {","})
        random.shuffle(nodes)
        question = edges + cut + "".join(nodes)
        return Example(question, (), self.solve(question))

    def longest(self, size: Size) -> Example:
        parameters = self.parameters
        return Example("ab," * parameters.most_edges + "?" + "b" * parameters.num_nodes, (), "b")

    def solve(self, question: str) -> str:
        answer = self.prefix_answers(question)[-1]
        assert answer is not None, "a question ends in a node"
        return answer

    def prefix_answers(self, question: str) -> tuple[str | None, ...]:
        edges, asked = _parts(question)
        parent_of: dict[str, str] = {}
        answers: list[str | None] = []
        for parent, child in edges:
            root = _root(parent, parent_of)
            answers += (root, root, None)
            parent_of[child] = parent
        return *answers, None, *(_root(node, parent_of) for node in asked)


def _parts(question: str) -> tuple[list[str], str]:
    """Edges, and the nodes that are asked for.

    Raises:
        ValueError: the text has another form.
    """
    match = _QUESTION.fullmatch(question)
    if not match:
        raise ValueError(f"not of the form 'Ab,bc,de,?cb': {question[-60:]!r}")
    return match[1][:-1].split(","), match[2]


def _root(node: str, parent_of: Mapping[str, str]) -> str:
    start = node
    for _ in range(len(parent_of) + 1):
        if node not in parent_of:
            return node
        node = parent_of[node]
    raise ValueError(f"the parents of {start!r} go round in a circle")
