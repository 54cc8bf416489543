"""One session of a run with wandb: `wandb_child.py RUN_DIR RESUMED_STEP [kill]` logs two steps, after killing the
service if told to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from pretrain.config.run import RunConfig
from pretrain.run.logger import RunMetrics
from tests.support.run_rows import step_row


def wandb_service() -> int:
    listing = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in listing.splitlines() if "wandb-core" in line and f"--pid {os.getpid()} " in line + " "]
    return int(line.split()[0])


def main(run_dir: Path, resumed_step: int, kill: bool) -> None:
    config = RunConfig.model_validate({"run": {"name": "test"}, "logging": {"wandb_project": "of-tests"}})
    with RunMetrics(config, run_dir, num_steps=1000, resumed_step=resumed_step) as metrics:
        if kill:
            os.kill(wandb_service(), signal.SIGKILL)
        for step in (resumed_step + 1, resumed_step + 2):
            metrics.log_step(step_row(step))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "kill" in sys.argv[3:])
