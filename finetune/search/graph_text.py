"""Reading what a model writes about the graph of a question, for any task that says how it writes one
(`pretrain/tasks/graph_form.py`): ProsQA, in words and in symbols, ProntoQA, and those of users."""

from typing import NamedTuple, Self

from finetune.examples.examples import TextForm
from pretrain.tasks.graph_form import GraphForm, Step
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.registry import TASKS, task_class


class GraphText(NamedTuple):
    """How a task writes graphs, and the text between the parts of its examples."""

    form: GraphForm
    text: TextForm

    @classmethod
    def of_question(cls, question: str, own: str | None = None) -> Self | None:
        """That of the task which writes such questions; None if no graph is written in it. A run's own task is tried
        first, and need not be of this project."""
        for task in (*([task_class(own)] if own else []), *TASKS.values()):
            if task.graph_form is None:
                continue
            try:
                task.graph_form.graph(question)
            except ValueError:
                continue
            return cls(task.graph_form, TextForm.of(task))
        return None

    def steps(self, graph: Graph, text: str) -> list[Step | None]:
        """The steps before the answer in what a model wrote; None for each that is malformed or incomplete."""
        chain = text.partition(self.text.answer_start.strip())[0]
        *parts, rest = chain.split(self.text.step_end)
        if rest.strip():  # the tokens ran out, or the step has no end
            parts.append(rest)
        return [self.form.sentence(graph, part.strip()) for part in parts]
