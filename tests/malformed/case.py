"""A malformed input and the answer to it, and what tables of cases share.

`{world}` in the arguments and files of a case stands for a folder with good inputs of every kind, which all cases share
and none changes (`bench.py`), `{here}` for a folder of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

DEEP_LIST, DEEP_MAP = "[" * 100_000, '{"a":' * 100_000
BEYOND_64_BITS = "99999999999999999999"
BINARY = bytes(range(128, 256))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command, the files that it reads, and what it has to answer."""

    name: str
    command: str
    """Module with a `main`."""
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    """What the answer says, the place of the fault among it: on standard error, or anywhere if the code is 0."""
    code: int = 2
    """Exit code; of a success, the answer may have any length."""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    """Written into the case's folder."""
    copies: tuple[str, ...] = ()
    """Of the world, to be changed by `files`."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Symbolic links in the case's folder, and where they lead."""
    environment: Mapping[str, str] = field(default_factory=dict)
    is_light: bool = False
    """Torch is not needed for the answer, so it must not be imported."""
    most_lines: int = 2

    def __str__(self) -> str:
        return f"{self.command}: {self.name}"


def train(name: str, *arguments: str, words: tuple[str, ...], **more: Any) -> Case:
    """A case of pretraining from the world's configuration."""
    return _entry("pretrain.train", "{world}/train.yaml", name, arguments, words=words, **more)


def finetune(name: str, *arguments: str, words: tuple[str, ...], **more: Any) -> Case:
    """A case of fine-tuning from the world's configuration."""
    return _entry("finetune.coconut", "{world}/finetuned.yaml", name, arguments, words=words, **more)


def both_ways(name: str, *arguments: str, **more: Any) -> Iterator[Case]:
    """A case of pretraining, and of its dry run."""
    yield train(name, *arguments, **more)
    yield train(f"{name}, dry run", *arguments, "--dry-run", **more)


def _entry(command: str, config: str, name: str, arguments: tuple[str, ...], **more: Any) -> Case:
    given = () if "--config" in arguments else ("--config", config)
    return Case(name=name, command=command, arguments=(*given, *arguments, "run.root={here}/runs"), **more)
