"""How a task writes a graph and steps through it, for tools that follow a search (`finetune/search`).

A task whose questions are about a graph gives one of these as `Task.graph_form`. It reads text alone, so it is good for
files of such questions too.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from pretrain.tasks.prosqa.prosqa_graph import Graph


class Step(NamedTuple):
    """A written step, as the names of its nodes, which need not exist."""

    parent: str | None
    """None: the text names the node that has been reached, and no edge to it."""
    child: str


class GraphForm(ABC):
    """How graphs, and steps through them, are written."""

    first_distance: ClassVar[int] = 0
    """Distance from the root of the node that the first step begins with."""

    @abstractmethod
    def graph(self, question: str) -> Graph:
        """The graph of a question.

        Raises:
            ValueError: the text is of another form.
        """

    @abstractmethod
    def opening(self, graph: Graph) -> str:
        """The text of a step before the name of its first node that is not the root; it may be empty."""

    @abstractmethod
    def spelt(self, name: str) -> str:
        """A name as it follows the opening."""

    @abstractmethod
    def sentence(self, graph: Graph, text: str) -> Step | None:
        """One step about a graph, without its end; None if it is of another form."""
