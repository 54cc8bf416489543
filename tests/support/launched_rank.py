"""A rank for tests of the launcher: it writes down who it is, then does what the arguments say.

    launched_rank.py FOLDER RANK:DEED[:VALUE] ...

Deeds: `exit` with a code, once file `go` is there and rank 0 has started; `child`, start a process that outlives it;
`deaf`, ignore all signals but SIGKILL; `starting`, be no further than Python's own start. Any other rank counts the
signals that it gets until the first SIGTERM or second SIGINT, and then ends with 0.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def main(folder: Path, deeds: list[str]) -> int:
    rank, got = os.environ["RANK"], list[str]()
    own = [deed.split(":") for deed in deeds if deed.split(":")[0] == rank]

    def note(number: int, _: object) -> None:
        got.append(signal.Signals(number).name)

    while [rank, "starting"] in own:
        time.sleep(0.01)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if [rank, "deaf"] in own else note)
    names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    pids = [os.getpid()]
    if [rank, "child"] in own:
        pids.append(subprocess.Popen(["sleep", "600"]).pid)
    lines = [*(f"{name}={os.environ[name]}" for name in names), f"pids={' '.join(map(str, pids))}"]
    (folder / f"{rank}.tmp").write_text("\n".join(lines))
    (folder / f"{rank}.tmp").rename(folder / f"{rank}.started")
    for _, deed, *value in own:
        if deed == "exit":
            while not ((folder / "go").exists() and (folder / "0.started").exists()):
                time.sleep(0.01)
            return int(value[0])
    while "SIGTERM" not in got and got.count("SIGINT") < 2:
        time.sleep(0.01)
    time.sleep(0.3)  # what comes twice has come by now
    (folder / f"{rank}.got").write_text(" ".join(got))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
