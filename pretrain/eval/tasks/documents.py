"""Rows of released files as documents of the harness's tasks: one function per format, named in a task's YAML.

Fields of a document are those that the harness's own task of the same name reads, so that one prompt serves both.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from pretrain.eval.tasks.files import Record, as_number, find_file, read_rows

Document = dict[str, Any]


def read_task(
    *, form: str, files: Mapping[str, Sequence[str]], data_dir: str | None = None, **_: object
) -> dict[str, Dataset]:
    """The splits of a task, for `custom_dataset` of its YAML.

    Args:
        form: a key of FORMS.
        files: by split, the files that may hold it; the first that exists is read.
        data_dir: folder of the evaluation data, from the metadata of the task manager (the rest of it is ignored).

    Raises:
        ValueError: no data directory was given, or a row is malformed; says which.
        FileNotFoundError: a file is not there.
    """
    if data_dir is None:
        raise ValueError(
            "offline tasks need the folder of their files: give the task manager metadata={'data_dir': ...}"
        )
    return {split: _read_split(find_file(Path(data_dir), names), FORMS[form]) for split, names in files.items()}


def _read_split(path: Path, form: Callable[[Record], Iterator[Document]]) -> Dataset:
    return Dataset.from_list([document for row in read_rows(path) for document in form(row)])


def _question_and_answer(row: Record) -> Iterator[Document]:
    yield {"question": row.text("question"), "answer": row.text("answer")}


def _svamp(row: Record) -> Iterator[Document]:
    story = row.text("Body").strip()
    # Many stories of the release lack their full stop.
    story += "." if story[-1:].isalnum() else ""
    yield {"question": f"{story} {row.text('Question').strip()}", "answer": _number_text(row.number("Answer"))}


def _mawps(row: Record) -> Iterator[Document]:
    solutions = row.fields.get("lSolutions")
    if not isinstance(solutions, list) or len(solutions) != 1 or not isinstance(solutions[0], int | float | str):
        raise ValueError(f"{row.where}: 'lSolutions' is {solutions!r:.80}, not a list of one number")
    answer = as_number(solutions[0], f"{row.where}: 'lSolutions'")
    yield {"question": row.text("sQuestion").strip(), "answer": _number_text(answer)}


def _single_op(row: Record) -> Iterator[Document]:
    yield {"question": row.text("input").strip(), "answer": _number_text(row.number("target"))}


def _number_text(value: float) -> str:
    """As a person would write it: 43, 9.43, 0.6667."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _squad(row: Record) -> Iterator[Document]:
    """An article: each question with its paragraph; no answers if it is unanswerable."""
    title = row.text("title")
    for paragraph in row.rows("paragraphs"):
        context = paragraph.text("context")
        for question in paragraph.rows("qas"):
            answers = [answer.text("text") for answer in question.rows("answers")]
            yield {
                "id": question.text("id"), "title": title, "context": context,
                "question": question.text("question"), "answers": {"text": answers},
            }  # fmt: skip


def _trivia_qa(row: Record) -> Iterator[Document]:
    prompt = row.text("context")
    match = re.fullmatch(r"Question: (.*)\nAnswer:", prompt, re.DOTALL)
    if not match:
        raise ValueError(f"{row.where}: 'context' is {prompt!r:.80}, not 'Question: ...', a line break and 'Answer:'")
    value = row.text("answer")
    # The first alias is what an example in the prompt shows; the release has lost their order.
    aliases = list(dict.fromkeys([value, *row.texts("aliases")]))
    yield {"question": match[1], "answer": {"value": value, "aliases": aliases}}


def _nq_open(row: Record) -> Iterator[Document]:
    yield {"question": row.text("question"), "answer": row.texts("answer")}


def _web_questions(row: Record) -> Iterator[Document]:
    answers: list[str] = []
    for answer in sorted(row.texts("answers")):
        # an answer that begins with another adds nothing: who gives it has given the other
        if not answers or not answer.startswith(answers[-1]):
            answers.append(answer)
    yield {"question": row.text("qText"), "answers": answers, "shown": answers[0]}


def _lambada(row: Record) -> Iterator[Document]:
    yield {"text": f"{row.text('context')} {row.text('continuation')}"}


def _hella_swag(row: Record) -> Iterator[Document]:
    """Of the original release, or of one whose contexts and endings are cleaned already."""
    endings = row.texts("endings")
    document: Document = {"query": row.text("ctx"), "choices": endings, "label": row.choice("label", len(endings))}
    if "activity_label" in row.fields:
        context = f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
        document |= {"query": _clean_how_to(context), "choices": [_clean_how_to(ending) for ending in endings]}
    yield document


def _clean_how_to(text: str) -> str:
    """Without the marks of WikiHow's headings and steps."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _piqa(row: Record) -> Iterator[Document]:
    yield {key: row.text(key) for key in ("goal", "sol1", "sol2")} | {"label": row.choice("label", 2)}


def _arc(row: Record) -> Iterator[Document]:
    """Of the original schema, or with the prompt's "Question: " in a query and the number of the right choice."""
    if "query" not in row.fields:
        choices = row.row("choices")
        texts, labels, key = choices.texts("text"), choices.texts("label"), row.text("answerKey")
        if key not in labels or len(texts) != len(labels):
            raise ValueError(
                f"{row.where}: 'answerKey' is {key!r}, not one of {', '.join(labels)}, "
                "or choices and labels differ in number"
            )
        question = row.text("question")
    else:
        texts = row.texts("choices")
        labels = [chr(ord("A") + number) for number in range(len(texts))]
        key = labels[row.choice("gold", len(texts))]
        question = row.text("query").removeprefix("Question: ")
    yield {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": key}


def _boolq(row: Record) -> Iterator[Document]:
    yield {"question": row.text("question"), "passage": row.text("passage"), "label": int(row.flag("answer"))}


def _wino_grande(row: Record) -> Iterator[Document]:
    sentence, answer = row.text("sentence"), row.text("answer")
    if "_" not in sentence or answer not in ("1", "2"):
        raise ValueError(f"{row.where}: its sentence has no gap '_', or its answer is {answer!r}, not '1' or '2'")
    yield {"sentence": sentence, "option1": row.text("option1"), "option2": row.text("option2"), "answer": answer}


def _wiki_text(row: Record) -> Iterator[Document]:
    """Articles of a whole file; each begins with its title, " = Title = ", on a line of its own."""
    for page in re.split(r"(?m)^(?= = [^=].* = ?$)", row.text("text")):
        if page.strip():
            yield {"page": page}


FORMS: dict[str, Callable[[Record], Iterator[Document]]] = {
    form.__name__.removeprefix("_"): form
    for form in (
        _question_and_answer, _svamp, _mawps, _single_op, _squad, _trivia_qa, _nq_open, _web_questions, _lambada,
        _hella_swag, _piqa, _arc, _boolq, _wino_grande, _wiki_text,
    )
}  # fmt: skip
"""Documents of a row, by the name of the format in a task's YAML."""
