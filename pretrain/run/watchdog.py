"""A thread of each rank that notices a hang, says which rank did not come, and ends the job so that it is requeued.

A rank that stands still leaves the others in a collective, for half an hour, without a word. So each rank knows where
it stands (`pretrain/parallel/phase.py`), and writes that, with a beat, into a file of its own twenty times within the
time limit: by a thread, so a step costs nothing for it. Where a rank has not moved for as long as the limit

1. it writes the stacks of its threads and torch's flight recorder (which collectives were begun) to `logs/hang`;
2. the first of the hung ranks reads the files of all: whose beat has stopped is silent (stopped, dead, or its node is),
   whose beat goes on says where it stands, and who is behind the others is who did not come;
3. it says so in one line, in `state` too, and ends its process with HUNG; whoever started the ranks ends the others.

Beats are counted, clocks of machines never compared. A process that was itself stopped for a while, and goes on, begins
to count anew.
"""

import contextlib
import faulthandler
import json
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from torch._C import _distributed_c10d

from pretrain.command.console import HUNG, print_line
from pretrain.parallel.contact import LOGS
from pretrain.parallel.phase import ORDER, Phase, Whereabouts
from pretrain.run.directory import write_state
from pretrain.storage import parse_json, read_file

HANG = "hang"
"""Folder of what the ranks knew, in that of the logs."""
BEATS = 20
"""Within the time limit."""
BEAT_S = (0.05, 30.0)
"""Shortest and longest time between two."""
START_FACTOR = 3
"""Times the limit, until the first step is done."""
SETTLE_BEATS = 3
"""So long the hung ranks have to write what they know; whose beat stands still is silent."""
NAMED_RANKS = 8
RECORD_BYTES = 512
"""Of the file of a rank, filled up with spaces: its length never changes."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What the file of a rank says."""

    count: int
    host: str
    place: Whereabouts
    is_hung: bool

    @classmethod
    def read(cls, path: Path) -> "Beat | None":
        """None where there is none, or it cannot be read, or is being written."""
        try:
            values = parse_json(read_file(path))
            moves, step, phase, more = values["place"]
            place = Whereabouts(int(moves), int(step), phase, str(more))
            return cls(count=values["count"], host=values["host"], place=place, is_hung=values["is_hung"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Watchdog:
    """Watches this rank. A context manager, within which the thread runs.

    Args:
        run_dir: the run directory, which exists.
        rank: this rank.
        world_size: ranks that watch each other.
        phase: where this rank stands.
        limit_s: seconds without a move after which it hangs.
        end: ends the process with an exit code.
    """

    def __init__(
        self, run_dir: Path, rank: int, world_size: int, phase: Phase, limit_s: float,
        end: Callable[[int], object] = os._exit,
    ) -> None:  # fmt: skip
        self._run_dir, self._rank, self._world_size, self._phase = run_dir, rank, world_size, phase
        self._limit_s, self._end = limit_s, end
        self._beat_s = min(max(limit_s / BEATS, BEAT_S[0]), BEAT_S[1])
        self._host, self._count, self._is_hung = socket.gethostname(), 0, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # of an earlier start, which hung
            self._beat_path(self._rank).unlink()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._phase.enter("end")
        self._ended.set()
        self._thread.join(self._beat_s + 1)  # its storage may be what is slow
        with contextlib.suppress(OSError):
            self._beat_path(self._rank).unlink()
            self._beat_path(0).parent.rmdir()
            (self._run_dir / LOGS).rmdir()

    def _watch(self) -> None:
        seen, still_s, last = self._phase.place, 0.0, time.monotonic()
        while not self._ended.wait(self._beat_s):
            now = time.monotonic()
            has_slept = now - last > 3 * self._beat_s + 1  # this process was stopped
            still_s = 0.0 if has_slept or self._phase.place is not seen else still_s + now - last
            seen, last = self._phase.place, now
            self._write_beat()
            if still_s > self._limit_s * (START_FACTOR if self._phase.is_starting else 1):
                self._report(still_s)

    def _beat_path(self, rank: int) -> Path:
        return self._run_dir / LOGS / "beats" / f"rank-{rank:05d}.json"

    def _beat(self) -> Beat:
        return Beat(count=self._count, host=self._host, place=self._phase.place, is_hung=self._is_hung)

    def _write_beat(self) -> None:
        if self._world_size == 1:
            return
        self._count += 1
        path = self._beat_path(self._rank)
        with contextlib.suppress(OSError):
            if self._count == 1:
                path.parent.mkdir(parents=True, exist_ok=True)
            record = json.dumps(asdict(self._beat())).encode().ljust(RECORD_BYTES)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)  # in place, at once: it may be stopped anywhere
            try:
                os.write(descriptor, record)
            finally:
                os.close(descriptor)

    def _report(self, still_s: float) -> None:
        """Say what this rank knows, and, if it is the first of those that hang, what all of them know; then end."""
        place = self._phase.place
        if not self._is_hung:
            self._is_hung = True
            self._dump(place, still_s)
        self._settle()
        if self._phase.place is not place:  # it was slow, not hung
            self._is_hung = False
        elif self._is_first():
            others = [rank for rank in range(self._world_size) if rank != self._rank]
            before = self._beats(others)
            self._settle()
            what = f"hung for {still_s:.0f} s: {judge(self._rank, self._beat(), before, self._beats(others))}"
            print_line(f"error: {what}; where each rank stood: {self._run_dir / LOGS / HANG}")
            with contextlib.suppress(OSError):
                write_state(self._run_dir, f"failed: {what}")
            self._end(HUNG)

    def _settle(self) -> None:
        """Let all ranks write what they know, and whose beat has stopped show it."""
        for _ in range(SETTLE_BEATS):
            self._write_beat()
            time.sleep(self._beat_s)

    def _is_first(self) -> bool:
        """Whether no rank before this one knows that it hangs, and lives to say so."""
        for path in map(self._beat_path, range(self._rank)):
            beat = Beat.read(path)
            if beat is not None and beat.is_hung:
                self._settle()
                again = Beat.read(path)
                if again is None or again.count != beat.count:
                    return False
        return True

    def _beats(self, ranks: Sequence[int]) -> dict[int, Beat | None]:
        return {rank: Beat.read(self._beat_path(rank)) for rank in ranks}

    def _dump(self, place: Whereabouts, still_s: float) -> None:
        """Write down where this rank stands, what its threads do, and which collectives it has begun."""
        path = self._run_dir / LOGS / HANG / f"rank-{self._rank:05d}.txt"
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(f"rank {self._rank} on {self._host}: {place}, for {still_s:.0f} s\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            path.with_suffix(".collectives.json").write_bytes(_flight_record())


def _flight_record() -> bytes:
    """The collectives of torch's flight recorder, as JSON: of gloo and of NCCL."""
    names = ("_dump_fr_trace_json", "_dump_nccl_trace_json")
    found = [getattr(_distributed_c10d, name, None) for name in names]
    return b"\n".join(bytes(dump(True, False)) for dump in found if dump is not None) + b"\n"


def judge(rank: int, own: Beat, before: Mapping[int, Beat | None], now: Mapping[int, Beat | None]) -> str:
    """Who did not come, in words.

    Args:
        rank: that asks.
        own: what it knows of itself.
        before: what the files of the other ranks said.
        now: what they say a few beats later.
    """
    silent, by_place = [], defaultdict[tuple[int, int], list[int]](list)
    for other, beat in sorted({**now, rank: own}.items()):
        if other != rank and (beat is None or beat == before[other]):
            where = f" on {beat.host} is silent since {beat.place}" if beat else " never said where it stands"
            silent.append(f"rank {other}{where}")
        elif beat is not None:
            by_place[beat.place.step, ORDER.index(beat.place.phase)].append(other)
    words = silent[:NAMED_RANKS] + ([f"{len(silent) - NAMED_RANKS} more are silent"] if silent[NAMED_RANKS:] else [])
    beats = {**now, rank: own}
    for number, (_, ranks) in enumerate(sorted(by_place.items())):
        first = beats[ranks[0]]
        assert first is not None, "it stands somewhere"
        is_behind = number == 0 and not silent and len(by_place) > 1
        verb = "did not come from" if is_behind else "stands in" if len(ranks) == 1 else "stand in"
        host = f" on {first.host}" if len(ranks) == 1 else ""
        words.append(f"{name_ranks(ranks)}{host} {verb} {first.place}")
    return "; ".join(words)


def name_ranks(ranks: Sequence[int]) -> str:
    """Not all of them, if they are many."""
    named = ", ".join(map(str, ranks[:NAMED_RANKS]))
    more = f" and {len(ranks) - NAMED_RANKS} more" if len(ranks) > NAMED_RANKS else ""
    return f"rank{'s' * (len(ranks) > 1)} {named}{more}"
