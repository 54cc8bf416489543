"""Damage as storage and kills make it: of the newest checkpoint, and of files of rows. Rows that the run cannot make
again are left alone."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, parse_step
from pretrain.checkpoint.verify import verify

Damage = Callable[[Path, random.Random], None]


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(1, len(content))])


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


CHECKPOINT_DAMAGES: tuple[Damage, ...] = (flip_bit, truncate, empty, remove)


def damage_checkpoint(run_dir: Path, step: int, draw: random.Random) -> str:
    """Damage a file of the good checkpoint of a step; says what."""
    (path,) = (
        path for path in list_checkpoints(run_dir / CHECKPOINTS) if parse_step(path.name) == step and not verify(path)
    )
    file, how = draw.choice(sorted(path.iterdir())), draw.choice(CHECKPOINT_DAMAGES)
    how(file, draw)
    return f"{how.__name__} {path.name}/{file.name}"


def append_torn(path: Path, draw: random.Random) -> None:
    """Half a row after the last."""
    with path.open("ab") as file:
        file.write(b'{"step": 4, "loss": 3.1415926535'[: draw.randrange(1, 32)])


def append_zeros(path: Path, draw: random.Random) -> None:
    """What a power cut leaves of a page that was not written."""
    with path.open("ab") as file:
        file.write(bytes(draw.randrange(1, 100)))


def insert_rubbish(path: Path, draw: random.Random) -> None:
    """A line that holds no row, anywhere."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines) + 1), draw.choice((b"\xff\xfe\n", b"\n", b"[1, 2]\n", b'{"step": "7"}\n')))
    path.write_bytes(b"".join(lines))


def cut_last_row(path: Path, draw: random.Random) -> None:
    """The last row without its end, be it the line end alone."""
    content = path.read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    path.write_bytes(content[: draw.choice((len(content) - 1, draw.randrange(start, len(content))))])


ROW_DAMAGES: tuple[Damage, ...] = (
    append_torn, append_zeros, insert_rubbish, cut_last_row,
)  # fmt: skip


def damage_rows(run_dir: Path, first_repeated: Mapping[str, int], draw: random.Random) -> str:
    """Damage a file of rows; says what, or "" where there is no file.

    Args:
        run_dir: of the run.
        first_repeated: names of the files, and from which step on the run will make their rows again.
        draw: random numbers.
    """
    files = [name for name in first_repeated if (run_dir / name).exists()]
    if not files:
        return ""
    name, how = draw.choice(files), draw.choice(ROW_DAMAGES)
    if how is cut_last_row and _last_step(run_dir / name) < first_repeated[name]:
        how = append_torn
    how(run_dir / name, draw)
    return f"{how.__name__} {name}"


def _last_step(path: Path) -> int:
    lines = path.read_bytes().splitlines()
    try:
        return json.loads(lines[-1])["step"]
    except (ValueError, IndexError, KeyError, TypeError):
        return -1
