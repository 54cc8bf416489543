"""How the files of many ranks become one checkpoint, or none: renames in a shared folder, without collectives.

A background thread must not use the collectives of the training thread, so ranks meet in the file system: one that all
ranks see, with atomic rename. For one save, `tag` being `<nonce>.<attempt>`, the same on all ranks and never used
twice:

1. Every rank writes its tensor file into `step-00001000.tmp-<tag>`, flushes it and publishes its index
   `rank-00000.json` beside it.
2. Rank 0 waits for all indexes, checks that they make whole tensors, and writes `checkpoint.json` in their place.
3. Rank 0 flushes the folder and renames it to `step-00001000`: now the checkpoint exists. Then it flushes the parent.
4. The other ranks see the temporary folder disappear: their save is durable.

A rank that fails before step 2 leaves a note `step-00001000.failed-<tag>` with its reason and everybody gives up, rank
0 too. A note is only written where rank 0 cannot commit any more (a rank's index is missing, or rank 0 itself fails),
so nobody clears a folder that is about to be renamed; the folder is emptied first (a full disk has room for the note
again) and removed last (its disappearance without a note means success). A rank that dies silently is named by rank 0
after `timeout_s`.

Kill any rank at any point: the previous checkpoints are untouched, and what is left over carries a `.tmp-` or
`.failed-` name that nobody reads and rank 0 removes. Saving a step that exists puts the old folder aside as `.replaced`
for the moment of the rename; where a kill left one, the damaged successor goes instead.
"""

import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.format import Contents, FileEntry, describe, unseal
from pretrain.checkpoint.index import build_index
from pretrain.checkpoint.names import CONTENTS_NAME, list_checkpoints, parse_step, rank_name, step_name
from pretrain.checkpoint.verify import is_unsettled, sound_contents
from pretrain.checkpoint.writer import Staged, publish, write_tensors
from pretrain.storage import clear_away, is_there, names_in, require_missing, sync_folder

_LEFTOVER = re.compile(r"step-\d{8,}\.(tmp|failed)-(?P<nonce>[A-Za-z0-9_-]+)(\.(?P<attempt>\d+))?(\.\d+)?")
_REPLACED = ".replaced"
_FIRST_PAUSE_S = 0.002
_PAUSE_S, _PAUSE_SHARE = 0.2, 1 / 8
"""The longest pause between two looks: so long, or that share of the wait so far."""
_NAMED_RANKS = 8


@dataclass(frozen=True, kw_only=True)
class SaveAttempt:
    """One rank's side of one save."""

    directory: Path
    step: int
    nonce: str
    attempt: int
    rank: int
    world_size: int
    timeout_s: float

    @property
    def final(self) -> Path:
        return self.directory / step_name(self.step)

    @property
    def folder(self) -> Path:
        return self.directory / f"{step_name(self.step)}.tmp-{self.nonce}.{self.attempt}"

    @property
    def note(self) -> Path:
        return self.directory / f"{step_name(self.step)}.failed-{self.nonce}.{self.attempt}"

    def run(self, staged: Staged, meta: dict[str, Any]) -> None:
        """Write this rank's part and return when the whole checkpoint is durable.

        Raises:
            OSError: the save failed, here or on another rank: one line that names the rank and the reason. Nothing of
                it is left.
        """
        try:
            self._stop_if_given_up()
            self.folder.mkdir(parents=True, exist_ok=True)
            publish(self._index_path(self.rank), write_tensors(self.folder / rank_name(self.rank), staged))
            if self.rank == 0:
                self._commit(meta)
        except Exception as error:  # whatever it is, the other ranks must hear of it, and training continues
            raise OSError(self.give_up(describe(error))) from error
        if self.rank != 0:  # its part is there, rank 0 may be about to commit it: nothing is cleared any more
            self._wait_for(lambda: not is_there(self.folder), lambda: "rank 0 did not commit")
            self._stop_if_given_up()

    def give_up(self, reason: str) -> str:
        """Clear the temporary folder and tell the other ranks; returns the reason that stands. Raises no OSError."""
        reason = self._read_note() or f"rank {self.rank}: {reason}"
        with suppress(OSError):  # the note matters more
            for path in _listing(self.folder):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # without a note the other ranks wait until their time limit
            self.directory.mkdir(parents=True, exist_ok=True)  # the first save of a run may fail at making it
            partial = self.note.with_name(f"{self.note.name}.{self.rank}")
            partial.write_text(reason, encoding="utf-8")
            partial.rename(self.note)
            clear_away(self.folder)
        return reason

    def _commit(self, meta: dict[str, Any]) -> None:
        self._wait_for(lambda: not self._missing_ranks(), self._describe_missing)
        indexes = [self._index_path(rank) for rank in range(self.world_size)]
        contents = Contents(step=self.step, meta=meta, files=tuple(unseal(path, FileEntry) for path in indexes))
        build_index(contents.files)
        for path in indexes:
            path.unlink()
        publish(self.folder / CONTENTS_NAME, contents)
        sync_folder(self.folder)
        replaced = self.final.with_name(self.final.name + _REPLACED)
        if is_there(self.final) and is_there(replaced):  # a kill left the two, and the newer was found bad since
            _remove(self.final)
        elif is_there(self.final):
            self.final.rename(replaced)
        try:
            self.folder.rename(self.final)
        except OSError:
            settle_replacements(self.directory)
            raise
        sync_folder(self.directory)

    def _index_path(self, rank: int) -> Path:
        return (self.folder / rank_name(rank)).with_suffix(".json")

    def _missing_ranks(self) -> list[int]:
        present = {path.name for path in _listing(self.folder)}
        return [rank for rank in range(self.world_size) if self._index_path(rank).name not in present]

    def _describe_missing(self) -> str:
        missing = self._missing_ranks()
        more = f" and {len(missing) - _NAMED_RANKS} more" if len(missing) > _NAMED_RANKS else ""
        return f"no file from rank {', '.join(map(str, missing[:_NAMED_RANKS]))}{more}"

    def _wait_for(self, is_ready: Callable[[], bool], describe_wait: Callable[[], str]) -> None:
        began, pause_s, failure = time.monotonic(), _FIRST_PAUSE_S, ""
        while True:
            try:
                if is_ready():
                    return
            except OSError as error:  # a failed call is not an answer: ask again
                failure = f" ({describe(error)})"
            self._stop_if_given_up()
            waited_s = time.monotonic() - began
            if waited_s > self.timeout_s:
                raise OSError(f"{describe_wait()} within {self.timeout_s:g} s{failure}")
            time.sleep(pause_s)
            pause_s = next_pause(pause_s, waited_s)

    def _stop_if_given_up(self) -> None:
        reason = self._read_note()
        if reason is not None:
            raise OSError(reason)

    def _read_note(self) -> str | None:
        try:
            return self.note.read_text(encoding="utf-8")
        except OSError:
            return None


def next_pause(pause_s: float, waited_s: float) -> float:
    """Seconds between two looks at the folder, given the last pause and the wait so far.

    It grows with the wait: a thousand ranks that wait minutes for the slowest file must not keep the server of the file
    system from it. 60 looks in 5 minutes, and a commit is noticed late by an eighth of the wait at most.
    """
    return min(2 * pause_s, max(_PAUSE_S, _PAUSE_SHARE * waited_s))


def settle_replacements(directory: Path) -> None:
    """Finish or undo replacements of checkpoints: a `.replaced` folder is removed if its successor is there and sound,
    takes its name back if there is none, and stays beside one that is not sound."""
    for path in _listing(directory):
        if not path.name.endswith(_REPLACED) or parse_step(path.name) is None:
            continue
        successor = path.with_name(path.name.removesuffix(_REPLACED))
        if not is_there(successor):
            path.rename(successor)
        elif sound_contents(successor) is not None:
            _remove(path)


def clean_leftovers(directory: Path, *, nonce: str, num_ended: int) -> None:
    """Remove unfinished saves and notes, except those of this start's saves after the first `num_ended`: other ranks
    may be ahead."""
    for path in _listing(directory):
        match = _LEFTOVER.fullmatch(path.name)
        if match and not (match["nonce"] == nonce and int(match["attempt"] or 0) > num_ended):
            _remove_leftover(path)


def apply_retention(directory: Path, *, step: int, keep_last: int, keep_every: int) -> None:
    """Remove old checkpoints after `step` was saved.

    Kept are the newest `keep_last` up to `step` of sound structure (names and sizes; not re-hashed) that no start found
    bad and whose last step was not skipped, all that are not older than these, and multiples of `keep_every`.
    Checkpoints of later steps were found bad when the run resumed before them: they are neither counted nor removed.

    Raises:
        OSError: one could not be looked at, and then nothing is removed, or one could not be removed.
    """
    num_sound, doomed = 0, []
    for path in list_checkpoints(directory):
        found = parse_step(path.name)
        if found is None or found > step:
            continue
        if num_sound < keep_last:
            contents = sound_contents(path)
            num_sound += contents is not None and not is_unsettled(contents)
        elif not (keep_every and found % keep_every == 0):
            doomed.append(path)
    for path in doomed:
        _remove(path)


def set_aside(path: Path) -> Path:
    """Give a checkpoint a name that nothing reads and nothing removes; returns it.

    Raises:
        OSError: it cannot be renamed.
    """
    number, target = 1, path.with_name(f"{path.name}.aside")
    while is_there(target):
        number, target = number + 1, path.with_name(f"{path.name}.aside-{number}")
    return path.rename(target)


def retire(path: Path) -> Path:
    """Make a checkpoint a leftover, which the next store of its folder removes; returns it.

    Raises:
        OSError: it cannot be renamed.
    """
    return path.rename(path.with_name(f"{path.name.split('.')[0]}.tmp-retired-{secrets.token_hex(4)}"))


def _remove(path: Path) -> None:
    """Remove a checkpoint so that a kill half-way does not leave it looking like one."""
    _remove_leftover(retire(path))


def _remove_leftover(path: Path) -> None:
    """Remove a folder or a file; of a link, to a checkpoint that was moved to another disk, the link alone."""
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        require_missing(path)
    except OSError as error:  # `rmtree` names a file without its folder, or none
        raise OSError(error.errno, error.strerror, str(path)) from error


def _listing(folder: Path) -> list[Path]:
    return [folder / name for name in names_in(folder) or ()]
