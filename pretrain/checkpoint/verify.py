"""Find the newest checkpoint that is good: complete, of the right sizes, every byte as it was written.

`newest_good` tries the newest step first; a bad one is named in one line and the next older one is tried. There is no
`latest` link to trust. Hashing reads every byte once (about 1.7 GiB/s a thread with SHA instructions); with several
ranks each hashes its share.

How ranks agree: they all call `newest_good` with a `gather` that concatenates the ranks' lists of strings and gives all
of them the result (an `all_gather_object`, flattened). Rank 0's listing of the folder and everyone's problems go
through it, so all ranks try the same checkpoints in the same order and stop at the same one, even when only one of them
can see that a file is bad.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretrain.checkpoint.format import CONTENTS_NAME, Contents, FileEntry, parse_step, read_contents
from pretrain.checkpoint.index import build_index
from pretrain.checkpoint.reader import CheckpointReader

Gather = Callable[[list[str]], list[str]]
_HASHING_THREADS = 8


def list_checkpoints(directory: Path | str) -> list[Path]:
    """The checkpoint folders in `directory`, newest step first, unverified; empty when there is no such directory.

    A `.replaced` folder is what a save of the same step was about to replace: it comes after the one without.
    """
    folder = Path(directory)
    found = [path for path in folder.iterdir() if parse_step(path.name) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda path: (-(parse_step(path.name) or 0), path.name))


def newest_good(
    directory: Path | str, *, rank: int = 0, world_size: int = 1, gather: Gather = list
) -> tuple[CheckpointReader | None, list[str]]:
    """Open the newest good checkpoint of a directory. With several ranks, all of them call this.

    Args:
        directory: folder of checkpoints.
        rank: this rank.
        world_size: ranks that share the hashing.
        gather: concatenates the ranks' lists, in the same order on all ranks.

    Returns:
        The checkpoint, or None when there is no good one, and one line for each bad one that was passed over.
    """
    problems: list[str] = []
    for name in gather([path.name for path in list_checkpoints(directory)] if rank == 0 else []):
        path = Path(directory) / name
        found = list(dict.fromkeys(gather(verify(path, rank=rank, world_size=world_size))))
        if not found:
            return CheckpointReader(path), problems
        more = f" (and {len(found) - 1} more problems)" if len(found) > 1 else ""
        problems.append(f"checkpoint {path} is bad: {found[0]}{more}")
    return None, problems


def verify(path: Path, *, rank: int = 0, world_size: int = 1) -> list[str]:
    """Check structure and sizes of a checkpoint, and the sha256 of every `world_size`-th file from the `rank`-th on.

    Returns:
        What is wrong, one line each, naming the file; empty when all is well.
    """
    try:
        files = check_structure(path).files[rank::world_size]
    except (OSError, ValueError) as error:
        return [_one_line(error)]
    with ThreadPoolExecutor(max_workers=_HASHING_THREADS) as pool:
        return [problem for problem in pool.map(lambda file: _hash_problem(path, file), files) if problem]


def check_structure(path: Path) -> Contents:
    """Check everything but the hashes: `checkpoint.json`, whole tensors, sizes of files. Costs one `stat` a file.

    Raises:
        OSError: a file cannot be found or read.
        ValueError: naming the file and what is wrong with it.
    """
    contents = read_contents(path)
    try:
        build_index(contents.files)
    except ValueError as error:
        raise ValueError(f"{CONTENTS_NAME}: {error}") from error
    for file in contents.files:
        size = (path / file.name).stat().st_size
        if size != file.size:
            raise ValueError(f"{file.name} has {size} bytes, {file.size} were written")
    return contents


def _hash_problem(path: Path, file: FileEntry) -> str | None:
    try:
        with (path / file.name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return _one_line(error)
    return None if digest == file.sha256 else f"{file.name} is damaged: its sha256 does not match"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    return str(error)
