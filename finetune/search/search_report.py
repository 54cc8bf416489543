"""All analyses of the latent search of one run (`tools/latent_search.py`), as files of numbers and figures.

`numbers.json` has everything but the values of single nodes, which are in `node_values.csv`.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten

from finetune.answers.evaluation import Questions
from finetune.answers.results import CoconutRow, standard_error
from finetune.answers.scoring import Answerer, answer_settings, is_right
from finetune.examples.examples import encode_examples
from finetune.latent.generation import AnswerSettings
from finetune.run.finetuned_model import FinetunedModel
from finetune.search.figures import MAX_PANELS, draw_heights, draw_parallelism, draw_tree
from finetune.search.graph_text import GraphText
from finetune.search.latent_search import ThoughtNumbers, ThoughtStatistics, search_values, thought_statistics
from finetune.search.redraw import SUFFIXES, draw_numbers, note_of, read_numbers
from finetune.search.search_tree import (
    NodeValue,
    Process,
    ProcessBar,
    frontier_share,
    judge,
    top_values,
    values_by_height,
)
from finetune.search.tree_layout import view_tree
from pretrain.tasks.shortcuts import Floor


class Searcher:
    """Analyses the thoughts of one run about questions: their size and what they decode to, and the search in the graph
    of the questions if they have one (ProsQA, in words or symbols, ProntoQA, and tasks of users with a `graph_form`).

    Raises:
        ValueError: the run has no slots for thoughts, or the first question has a graph and another has none.
    """

    def __init__(self, finetuned: FinetunedModel, questions: Questions, batch: int) -> None:
        if not finetuned.has_slots:
            method = finetuned.config.method.name
            raise ValueError(
                f"{finetuned.run_dir}: method {method} has no thoughts to search with; --compare takes such runs"
            )
        self.finetuned, self.questions, self.batch = finetuned, questions, batch
        self._text = GraphText.of_question(questions.examples[0].question, finetuned.config.data.train.task)
        self.graphs = [self.text.form.graph(each.question) for each in questions.examples] if self._text else []

    @property
    def text(self) -> GraphText:
        """How the graphs are written."""
        assert self._text is not None, "these questions have no graph"
        return self._text

    def case_study(self, thoughts: ThoughtStatistics | None, question: int, num_thoughts: int) -> list[str]:
        """Lines about one question: its chain of reasoning, the tokens that each thought decodes to, and what the model
        writes after them."""
        example = self.questions.examples[question]
        lines = [f"  question {question}: {shorten(example.question, 200)}"]
        lines.append(f"    steps {' '.join(example.steps)}, answer {example.answer}")
        for number, tokens in enumerate(thoughts.top_tokens[question] if thoughts else (), 1):
            decoded = ", ".join(f"{token!r} {100 * probability:.1f} %" for token, probability in tokens)
            lines.append(f"    thought {number}: {decoded}")
        answerer = self._answerer(self.finetuned, self._settings(num_thoughts))
        (answer,) = answerer.answer([self.questions.encoded[question]])
        text = answerer.tokenizer.decode(answer.text)
        verdict = "right" if is_right(text, example.answer, self.questions.form) else "wrong"
        return [*lines, f"    then writes {shorten(text, 200)!r}: {verdict}"]

    def judge(self, num_thoughts: int) -> ProcessBar:
        """Classes of the answers after a number of thoughts."""
        slots = self.finetuned.config.chosen_method.slots
        assert slots is not None, "a run without slots is refused"
        label, settings = f"{num_thoughts} {slots.noun}{'s' * (num_thoughts != 1)}", self._settings(num_thoughts)
        return self._judge(self.finetuned, self.questions, settings, is_partial=num_thoughts > 0, label=label)

    def judge_other(self, other: FinetunedModel) -> ProcessBar:
        """Classes of another run's answers to the same questions, with its own tokenizer and number of thoughts."""
        tokenizer = other.trained.tokenizer
        encoded = encode_examples(self.questions.examples, self.questions.form, tokenizer, self.questions.split)
        questions, settings = replace(self.questions, encoded=encoded), answer_settings(other.config, tokenizer)
        is_partial = other.config.chosen_method.stages == "all"  # the curriculum removed the front of the chain
        bar = self._judge(other, questions, settings, is_partial=is_partial, label=other.config.run.name)
        return replace(bar, method=other.config.method.name)

    def values(self, num_thoughts: int) -> list[NodeValue]:
        """The value of every node after a number of thoughts."""
        trained, settings = self.finetuned.trained, self._settings(num_thoughts)
        prompts, tokenizer = self._prompts(settings), trained.tokenizer
        return search_values(trained.model, prompts, self.graphs, self.text, tokenizer, settings, batch=self.batch)

    def thoughts(self, num_thoughts: int) -> ThoughtStatistics | None:
        """Size, direction and likeliest tokens of a number of thoughts; None for pauses, or no thoughts."""
        trained, settings = self.finetuned.trained, self._settings(num_thoughts)
        if not self.finetuned.config.chosen_method.has_thoughts or num_thoughts == 0:
            return None
        return thought_statistics(trained.model, self._prompts(settings), trained.tokenizer, settings, batch=self.batch)

    def _settings(self, num_thoughts: int) -> AnswerSettings:
        return answer_settings(self.finetuned.config, self.finetuned.trained.tokenizer, num_slots=num_thoughts)

    def _prompts(self, settings: AnswerSettings) -> list[tuple[int, ...]]:
        return [settings.markers.prompt(example.question) for example in self.questions.encoded]

    def _answerer(self, finetuned: FinetunedModel, settings: AnswerSettings) -> Answerer:
        trained = finetuned.trained
        return Answerer(
            model=trained.model, tokenizer=trained.tokenizer, settings=settings, batch=self.batch,
            stop_classifier=finetuned.stop_classifier,
        )  # fmt: skip

    def _judge(
        self, finetuned: FinetunedModel, questions: Questions, settings: AnswerSettings, *, is_partial: bool, label: str
    ) -> ProcessBar:
        trained = finetuned.trained
        answers = self._answerer(finetuned, settings).answer(questions.encoded)
        texts = [trained.tokenizer.decode(answer.text) for answer in answers]
        pairs = zip(texts, questions.examples, strict=True)
        right = [is_right(text, example.answer, questions.form) for text, example in pairs]
        classes = [
            judge(
                graph,
                self.text.steps(graph, text),
                is_partial=is_partial,
                is_right=is_correct,
                first_distance=self.text.form.first_distance,
            )
            for graph, text, is_correct in zip(self.graphs, texts, right, strict=True)
        ]
        return ProcessBar(
            label=label,
            accuracy=sum(right) / len(right),
            stderr=standard_error(sum(right), len(right)),
            shares={process: classes.count(process) / len(classes) for process in Process},
        )


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The results of one run."""

    run: str
    step: int
    split: str
    num_examples: int
    floor: Floor
    """What takes no reasoning."""
    num_loops: int
    """Loops of everything but the grid."""
    bars: list[ProcessBar]
    """For each number of thoughts, and each compared run; none where questions have no graph, like the values."""
    values: dict[int, list[NodeValue]]
    """The values of all questions by number of thoughts, from 1."""
    thoughts: ThoughtStatistics | None
    """At the largest number of thoughts; None where slots hold pauses."""
    grid: list[CoconutRow]
    """Accuracy and cost at every number of thoughts and loops."""


def write_numbers(report: SearchReport, question: int, folder: Path) -> list[str]:
    """Write `numbers.json`, with the tokens that the thoughts of one question decode to, and, where there is a graph,
    `node_values.csv`; returns their names.

    Raises:
        OSError: the folder cannot be written.
    """
    thoughts = ThoughtNumbers.of(report.thoughts, question) if report.thoughts else None
    by_thoughts = {
        num_thoughts: {
            "mean_top_values": [sum(curve) / len(curve) for curve in top_values(values)],
            "frontier_share": frontier_share(values),
            "by_height": [group._asdict() for group in values_by_height(values)],
        }
        for num_thoughts, values in report.values.items()
    }
    head = {name: getattr(report, name) for name in ("run", "step", "split", "num_examples", "num_loops")}
    numbers = {
        **head,
        **report.floor._asdict(),
        "process": [asdict(bar) for bar in report.bars],
        "after_thoughts": by_thoughts,
        "thoughts": thoughts and asdict(thoughts),
        "grid": [asdict(row) for row in report.grid],
    }
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not report.values:
        return ["numbers.json"]
    with (folder / "node_values.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NodeValue._fields)
        writer.writerows(value for values in report.values.values() for value in values)
    return ["numbers.json", "node_values.csv"]


def draw_report(report: SearchReport, searcher: Searcher, question: int, folder: Path) -> list[str]:
    """Draw all figures that have data, with the tree and thoughts of one question, after `write_numbers`; returns their
    names."""
    names = draw_numbers(read_numbers(folder / "numbers.json"), folder)
    note = note_of(report.run, report.split, report.num_examples)

    def files(name: str) -> Sequence[Path]:
        names.append(name)
        return [folder / (name + suffix) for suffix in SUFFIXES]

    shown = dict(list(report.values.items())[:MAX_PANELS])
    if shown:
        draw_parallelism({number: top_values(values) for number, values in shown.items()}, note, files("parallelism"))
        draw_heights({number: values_by_height(values) for number, values in shown.items()}, note, files("height"))
        of_question = {number: [v for v in values if v.question == question] for number, values in shown.items()}
        graph = searcher.graphs[question]
        of_one = f"{note_of(report.run, report.split, 1).removesuffix('s')}, number {question}"
        draw_tree({number: view_tree(graph, values) for number, values in of_question.items()}, of_one, files("tree"))
    return names
