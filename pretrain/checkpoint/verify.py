"""Find the newest checkpoint that is good: complete, of the right sizes, every byte as it was written.

`newest_good` tries the newest step first; a bad one is named in one line and the next older one is tried. There is no
`latest` link to trust. Hashing reads every byte once (about 1.7 GiB/s a thread with SHA instructions); with several
ranks each looks at its share of the files.

What a rank does for that does not grow with the ranks that saved: rank 0 reads and checks `checkpoint.json`, once, and
hands it on; each looks at its share of the files, a `stat` and a read each. The folder is listed only where a file is
not found.

Damage is what was read and is wrong: a file that its folder does not list, a size, a hash. A call that fails (EIO,
ESTALE, EACCES, a file that is listed and cannot be found) says nothing about the checkpoint: it raises an OSError that
names file and errno, and no older checkpoint is taken because of it. The same command may succeed a minute later.

How ranks agree: they all call `newest_good` with a `gather` that concatenates the ranks' lists of strings and gives all
of them the result (an `all_gather_object`, flattened), and a `share` that gives all of them rank 0's list. Rank 0's
listing of the folder, everyone's failed calls and everyone's problems go through these, so all ranks try the same
checkpoints in the same order and end at the same one, or with the same error, even when only one of them can see that a
file is bad.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.checkpoint.format import Contents, FileEntry, describe, read_contents
from pretrain.checkpoint.index import build_index
from pretrain.checkpoint.names import CONTENTS_NAME, list_checkpoints, parse_step
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.storage import LEADS_NOWHERE, naming

Gather = Callable[[list[str]], list[str]]
Share = Callable[[list[str]], list[str]]
_HASHING_THREADS = 8
_DAMAGE_NOTE = "damaged.txt"
"""What is wrong with a checkpoint, written into its folder by the run that found it."""


def newest_good(
    directory: Path | str,
    *,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = list,
    share: Share = list,
    keep_verdicts: bool = False,
    step: int | None = None,
    before: int | None = None,
) -> tuple[CheckpointReader | None, list[str]]:
    """Open the newest good checkpoint of a directory. With several ranks, all of them call this.

    Args:
        directory: folder of checkpoints.
        rank: this rank.
        world_size: ranks that share the hashing.
        gather: concatenates the ranks' lists, in the same order on all ranks.
        share: gives all ranks the list of rank 0.
        keep_verdicts: leave a note in each bad checkpoint's folder, so that retention does not count it as kept.
        step: open the checkpoint of this step alone.
        before: open one from before this step.

    Returns:
        The checkpoint, or None when there is no good one, and one line for each bad one that was passed over.

    Raises:
        OSError: a call failed, on any rank.
    """
    names: list[str] = []
    with _agreed_failure(gather):
        names = [path.name for path in list_checkpoints(directory)] if rank == 0 else []
        names = [name for name in names if step is None or parse_step(name) == step]
        names = [name for name in names if before is None or (parse_step(name) or 0) < before]
    problems: list[str] = []
    for name in share(names):
        path, contents, found = Path(directory) / name, None, []
        with _agreed_failure(gather):
            contents, found = _structure(path) if rank == 0 else (None, [])
        contents = _shared(contents, rank, share)
        with _agreed_failure(gather):
            found += [] if contents is None else _file_problems(path, contents, rank, world_size)
        found = list(dict.fromkeys(gather(found)))
        if contents is not None and not found:
            return CheckpointReader(path, contents), problems
        more = f" (and {len(found) - 1} more problems)" if len(found) > 1 else ""
        problems.append(f"checkpoint {path} is bad: {found[0]}{more}")
        if keep_verdicts and rank == 0:
            with suppress(OSError):  # a damaged folder may take no note; the next start finds out again
                (path / _DAMAGE_NOTE).write_text("\n".join([*found, ""]), encoding="utf-8")
    return None, problems


@contextmanager
def _agreed_failure(gather: Gather) -> Iterator[None]:
    """A call that fails inside on one rank raises the same OSError, with its errno, on all of them."""
    failures = []
    try:
        yield
    except OSError as error:
        failures = [f"{error.errno or 0} {describe(error)}"]
    failures = gather(failures)
    if failures:
        number, _, what = failures[0].partition(" ")
        is_path_bad = int(number) in LEADS_NOWHERE
        why = "" if is_path_bad else ": the storage failed, and no checkpoint was passed over for it"
        agreed = OSError(f"{what}{why}")
        agreed.errno = int(number) or None
        raise agreed


def verify(path: Path, *, rank: int = 0, world_size: int = 1) -> list[str]:
    """Check a checkpoint: its structure, and size and sha256 of every `world_size`-th file from the `rank`-th on.

    Returns:
        What is wrong, one line each, naming the file; empty when all is well.

    Raises:
        OSError: a call failed.
    """
    contents, problems = _structure(path)
    return problems if contents is None else _file_problems(path, contents, rank, world_size)


def _structure(path: Path) -> tuple[Contents | None, list[str]]:
    """What a checkpoint holds, or what is wrong with its `checkpoint.json`."""
    try:
        return read_structure(path), []
    except ValueError as error:
        return None, [str(error)]


def _shared(contents: Contents | None, rank: int, share: Share) -> Contents | None:
    """Rank 0's, on all ranks."""
    texts = share([] if contents is None else [json.dumps(contents.model_dump())])
    return contents if rank == 0 or not texts else Contents.model_validate_json(texts[0])


def _file_problems(path: Path, contents: Contents, rank: int, world_size: int) -> list[str]:
    """What is wrong with a rank's share of the files."""
    files = contents.files[rank::world_size]
    try:
        check_sizes(path, files)
    except ValueError as error:
        return [str(error)]
    with ThreadPoolExecutor(max_workers=_HASHING_THREADS) as pool:
        return [problem for problem in pool.map(lambda file: _hash_problem(path, file), files) if problem]


def sound_contents(path: Path) -> Contents | None:
    """What a checkpoint holds if it has all it needs, by names and sizes, its bytes not being read again; else None.

    Raises:
        OSError: a call failed, so nobody knows.
    """
    with naming(path):
        if _DAMAGE_NOTE in os.listdir(path):
            return None
    try:
        contents = read_structure(path)
        check_sizes(path, contents.files)
    except ValueError:
        return None
    return contents


def is_unsettled(contents: Contents) -> bool:
    """Whether a checkpoint was saved after a step without an update, so that its weights may be ruined."""
    return bool(contents.meta.get("counters", {}).get("skipped_in_a_row"))


def read_structure(path: Path) -> Contents:
    """Read `checkpoint.json` and check that its files make up whole tensors; whether they are there is not looked at.

    Raises:
        OSError: a call failed.
        ValueError: naming the file and what is wrong with it.
    """
    _size_of(path / CONTENTS_NAME)
    contents = read_contents(path)
    try:
        build_index(contents.files)
    except ValueError as error:
        raise ValueError(f"{CONTENTS_NAME}: {error}") from error
    return contents


def check_sizes(path: Path, files: Sequence[FileEntry]) -> None:
    """Compare the sizes of files with what was written; one `stat` a file.

    Raises:
        OSError: a call failed.
        ValueError: naming the file and its size.
    """
    for file in files:
        size = _size_of(path / file.name)
        if size != file.size:
            raise ValueError(f"{file.name} has {size} bytes, {file.size} were written")


def _size_of(path: Path) -> int:
    """Size of a regular file; opening anything else, such as a pipe, could wait forever."""
    try:
        found = path.stat()
    except FileNotFoundError:
        with naming(path.parent):
            is_listed = path.name in os.listdir(path.parent)
        if is_listed:
            raise
        raise ValueError(f"{path.name} is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return found.st_size


def _hash_problem(path: Path, file: FileEntry) -> str | None:
    with naming(path / file.name), (path / file.name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == file.sha256 else f"{file.name} is damaged: its sha256 does not match"
