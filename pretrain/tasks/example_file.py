"""Examples in files: a JSON list of {question, steps, answer}, plain or gzipped, as ProsQA and ProntoQA are published.

ProsQA's rows also hold the graph (idx_to_symbol, edges, root, target, neg_target). Other keys are ignored. A file with
a malformed row is refused; the error names the file and the index of the row.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pretrain.storage import read_file
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.task import Example

Text = Annotated[str, Field(min_length=1)]
Edge = Annotated[list[int], Field(min_length=2, max_length=2)]


class _ExampleRow(BaseModel):
    model_config = ConfigDict(strict=True)

    question: Text
    steps: list[Text]
    answer: Text

    def example(self) -> Example:
        return Example(self.question, tuple(self.steps), self.answer)


class _GraphRow(_ExampleRow):
    idx_to_symbol: list[Text]
    edges: list[Edge]
    root: int
    target: int
    neg_target: int

    def graph(self) -> Graph:
        return Graph(
            idx_to_symbol=tuple(self.idx_to_symbol),
            edges=tuple((parent, child) for parent, child in self.edges),
            root=self.root,
            target=self.target,
            neg_target=self.neg_target,
        )


def read_examples(path: Path) -> list[Example]:
    """The examples of a .json or .json.gz file.

    Raises:
        ValueError: the file is not such a list, or a row is malformed; names the file and the row's index from 0.
        OSError: the file cannot be opened.
    """
    return _read(path, lambda row: _ExampleRow.model_validate(row).example())


def read_graphs(path: Path) -> list[tuple[Example, Graph]]:
    """The examples of a ProsQA file, each with its graph.

    Raises:
        ValueError: as `read_examples`; also if a row has no graph, or its root does not reach the target, or reaches
            the other option.
        OSError: the file cannot be opened.
    """

    def parse(row: object) -> tuple[Example, Graph]:
        valid = _GraphRow.model_validate(row)
        return valid.example(), valid.graph()

    return _read(path, parse)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as `read_examples` reads them; gzipped if the name ends with .gz."""
    _write(path, [example._asdict() for example in examples])


def write_graphs(path: Path, examples: Iterable[tuple[Example, Graph]]) -> None:
    """Write ProsQA's examples with their graphs as `read_graphs` reads them; gzipped if the name ends with .gz."""
    fields = _GraphRow.model_fields.keys() - _ExampleRow.model_fields.keys()
    _write(
        path,
        [example._asdict() | {name: getattr(graph, name) for name in sorted(fields)} for example, graph in examples],
    )


T = TypeVar("T")


def _read(path: Path, parse: Callable[[object], T]) -> list[T]:
    """Parse every row of a file; errors of `parse` are re-raised with the file and the row."""
    data = read_file(path)
    try:
        rows = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of examples, got {type(rows).__name__}")
    parsed = []
    for index, row in enumerate(rows):
        try:
            parsed.append(parse(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ValueError(f"{path}: row {index}: {where}{first['msg']}") from None
        except ValueError as error:
            raise ValueError(f"{path}: row {index}: {error}") from None
    return parsed


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    data = json.dumps(rows).encode()
    # mtime=0: the same examples give the same bytes
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
