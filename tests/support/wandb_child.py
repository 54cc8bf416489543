"""One session of a run with wandb: `wandb_child.py RUN_DIR RESUMED_STEP [kill]` logs two steps, after killing the
service if told to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from pretrain.config.run import RunConfig
from pretrain.run.logger import RunMetrics
from pretrain.run.rows import MetricsRow


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
            numbers = {
                "loss": 3.5,
                "grad_norm": 0.5,
                "lr": 1e-3,
                "flops_per_step": 2e9,
                "peak_flops": 8e9,
                "step_time_s": 0.5,
            }
            metrics.log_step(
                MetricsRow.of_step(
                    step=step,
                    tokens_seen=9 * step,
                    num_loops=2,
                    tokens_per_step=9,
                    memory_gib=1.0,
                    skipped=0,
                    **numbers,
                )
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "kill" in sys.argv[3:])
