"""Files of examples: written as `read_examples` reads them, and the graphs in the released files of ProsQA."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from pretrain.tasks.example_file import read_examples
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.task import Example


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Gzipped if the name ends with .gz."""
    data = json.dumps([example._asdict() for example in examples]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read_graphs(path: Path) -> list[tuple[Example, Graph]]:
    """The examples of a gzipped file of ProsQA, each with its graph."""
    graphs = [
        Graph(
            idx_to_symbol=tuple(row["idx_to_symbol"]),
            edges=tuple((parent, child) for parent, child in row["edges"]),
            root=row["root"],
            target=row["target"],
            neg_target=row["neg_target"],
        )
        for row in json.loads(gzip.decompress(path.read_bytes()))
    ]
    return list(zip(read_examples(path), graphs, strict=True))
