"""Reading what a model writes about a ProsQA graph: steps as edges, and how the name of a node begins a step.

Two forms: words ("Every rempus is a lempus.", `pretrain/tasks/prosqa/prosqa_graph.py`) and symbols ("re,",
`pretrain/tasks/prosqa/prosqa_symbolic.py`).
"""

import re
from abc import ABC, abstractmethod
from typing import NamedTuple

from finetune.examples.examples import TextForm
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.prosqa.prosqa_symbolic import ProsQASymbolic, parse_graph

_SENTENCE = re.compile(r"(?:Every ([a-z]+)|([A-Z][a-z]*)) is a ([a-z]+)\.")


class Step(NamedTuple):
    """A written step, as the names of its nodes, which need not exist."""

    parent: str
    child: str


class GraphForm(ABC):
    """How graphs are written."""

    text: TextForm
    opening: str
    """The text of a step before the name of its first concept."""
    before_name: str
    """Between the opening and the name; part of the name's tokens."""

    @abstractmethod
    def graph(self, question: str) -> Graph:
        """The graph of a question.

        Raises:
            ValueError: the text is of another form.
        """

    @abstractmethod
    def sentence(self, text: str) -> Step | None:
        """One step, without its end; None if it is of another form."""

    def steps(self, text: str) -> list[Step | None]:
        """The steps before the answer in what a model wrote; None for each that is malformed or incomplete."""
        chain = text.partition(self.text.answer_start.strip())[0]
        *parts, rest = chain.split(self.text.step_end)
        if rest.strip():  # the tokens ran out, or the step has no end
            parts.append(rest)
        return [self.sentence(part.strip()) for part in parts]


class Words(GraphForm):
    text = TextForm()
    opening, before_name = "Every", " "

    def graph(self, question: str) -> Graph:
        return Graph.parse(question)

    def sentence(self, text: str) -> Step | None:
        match = _SENTENCE.fullmatch(text)
        return Step(match[1] or match[2], match[3]) if match else None


class Symbols(GraphForm):
    text = TextForm.of(ProsQASymbolic)
    opening = before_name = ""

    def graph(self, question: str) -> Graph:
        return parse_graph(question)

    def sentence(self, text: str) -> Step | None:
        return Step(*text) if len(text) == 2 else None


def form_of(question: str) -> GraphForm | None:
    """The form that a question is written in; None if no graph is written in it."""
    for form in (Symbols(), Words()):
        try:
            form.graph(question)
        except ValueError:
            continue
        return form
    return None
