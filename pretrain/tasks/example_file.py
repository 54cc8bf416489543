"""Examples in files: a JSON list of {question, steps, answer}, plain or gzipped, as ProsQA and ProntoQA are published.

Other keys are ignored (ProsQA's rows also hold the graph, which its question spells out).
"""

import codecs
import gzip
import zlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pretrain.config.section import first_problem
from pretrain.storage import parse_json, read_file
from pretrain.tasks.task import Example

Text = Annotated[str, Field(min_length=1)]


class _ExampleRow(BaseModel):
    model_config = ConfigDict(strict=True)

    question: Text
    steps: list[str]
    """An empty one is no step: that is what is left of a chain without steps that was split at spaces."""
    answer: Text


def read_examples(path: Path) -> list[Example]:
    """The examples of a .json or .json.gz file.

    Raises:
        ValueError: the file is not such a list, or a row is malformed; names the file and the row's index from 0.
        OSError: the file cannot be opened.
    """
    data = read_file(path)
    try:
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        rows = parse_json(data.removeprefix(codecs.BOM_UTF8))
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
