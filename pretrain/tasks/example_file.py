"""Examples in files: {question, steps, answer} as a JSON list, as ProsQA and ProntoQA are published, or as lines of
JSON; plain or gzipped.

Other keys are ignored (ProsQA's rows also hold the graph, which its question spells out).
"""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pretrain.schema.section import first_problem
from pretrain.storage import parse_json, read_file
from pretrain.tasks.task import Example


def _not_blank(text: str) -> str:
    if text.isspace():
        raise ValueError("is blank")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]


class _ExampleRow(BaseModel):
    model_config = ConfigDict(strict=True)

    question: Text
    steps: list[str]
    """An empty one is no step: that is what is left of a chain without steps that was split at spaces."""
    answer: Text


def is_json(path: Path) -> bool:
    """Whether `read_examples` is for this file, by its name."""
    return path.name.removesuffix(".gz").endswith((".json", ".jsonl"))


def read_examples(path: Path) -> list[Example]:
    """The examples of a .json or .jsonl file, perhaps gzipped.

    Raises:
        ValueError: the file is not such a list, or a row is malformed; names the file and the row's index from 0.
        OSError: the file cannot be opened.
    """
    data = read_file(path)
    try:
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        data = data.removeprefix(codecs.BOM_UTF8)
        is_list = path.name.removesuffix(".gz").endswith(".json")
        rows = parse_json(data) if is_list else list(_parse_lines(data))
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of examples, got {type(rows).__name__}")
    examples = []
    for index, row in enumerate(rows):
        try:
            valid = _ExampleRow.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            is_number = first["type"] == "string_type" and isinstance(first["input"], (int, float))
            hint = f': write it as text, "{first["input"]}"' if is_number else ""
            raise ValueError(f"{path}: row {index}: {first_problem(error)}{hint}") from None
        steps = tuple(step for step in valid.steps if step and not step.isspace())
        examples.append(Example(valid.question, steps, valid.answer))
    return examples


def _parse_lines(data: bytes) -> Iterator[Any]:
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            if line.strip():
                yield parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
