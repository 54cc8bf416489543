"""Partners of a looped model for an honest comparison: `python tools/match.py --config configs/loops/plain.yaml`.

Writes a configuration for each partner that does not loop and is equal in parameters, training FLOPs, inference FLOPs
and cache, or measured time (`--measure`), and prints what each costs beside the looped model. Train them as any other
run, and compare them with `tools/compare.py`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser, positive
from pretrain.config.read import read_config, resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.plan.partners import Costs, Partner, costs_of, partners
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.step import TimedStep

ROUNDS = 2
CLOSE_TIME = 0.05
"""Largest relative difference of what is timed."""
HEADINGS = ("parameters", "training_flops", "inference_flops", "cache_bytes")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Write the configurations of partners that cost the same in one way.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="of the looped model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for training")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for them; default: matched/<run.name>")
    parser.add_argument(
        "--measure", type=positive, metavar="STEPS", help="train so many steps of both, on this machine, for equal time"
    )
    return parser.parse_args(arguments)


def seconds_a_step(config: RunConfig, steps: int) -> float:
    """The quickest training step on one process of this machine, as others that use it only add time; without the first
    two."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "timed.yaml"
        file.write_text(resolved_yaml(config), encoding="utf-8")
        short = [
            f"run.root={folder}", "run.name=timed", f"train.steps={steps + 2}", "optimizer.warmup_steps=0",
            "logging.wandb=disabled", "logging.every=1", "validation.every=0", "validation.tasks_every=0",
            "checkpoint.every=0", "parallel.pipeline=1", "parallel.tensor=1",
        ]  # fmt: skip
        command = [sys.executable, "-m", "pretrain.train", "--config", str(file), *short]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"the timed run failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        rows = JsonLines(Path(folder) / "timed" / "metrics.jsonl").read(TimedStep)
    return min(row.step_time_s for row in rows[2:])


def seconds_in_turns(configs: Sequence[RunConfig], steps: int) -> list[float]:
    """The quickest step of each in `ROUNDS` rounds, in which each has its turn, so that a busy minute is not of one."""
    rounds = [[seconds_a_step(config, steps) for config in configs] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def timed_again(config: RunConfig, partner: RunConfig, steps: int) -> str:
    """What the time of the whole run of the partner is, over the looped one's, by two runs that did not choose it."""
    looped, plain = seconds_in_turns((config, partner), steps)
    ratio = plain * partner.train.steps / (looped * config.train.steps)
    line = f"timed again, equal_time takes {ratio:.3f}x the time"
    if abs(ratio - 1) <= CLOSE_TIME:
        return line
    return f"{line}, which is not within {CLOSE_TIME:.0%}: an idle machine and more steps are surer"


def table(config: RunConfig, found: Sequence[Partner]) -> list[str]:
    """A line a model: costs of the looped one, then those of the partners as multiples of them."""
    own: Costs = costs_of(config)
    lines = [f"{'':<30}" + "".join(f"{name.replace('_', ' '):>18}" for name in HEADINGS) + f"{'steps':>10}"]
    lines.append(
        f"{config.run.name:<30}"
        + "".join(f"{getattr(own, name):>18.4g}" for name in HEADINGS)
        + f"{config.train.steps:>10,}"
    )
    for partner in found:
        ratios = costs_of(partner.config).over(own)
        numbers = "".join(f"{ratios[name]:>17.3f}x" for name in HEADINGS)
        lines.append(f"{partner.name:<30}{numbers}{partner.config.train.steps:>10,}")
    return lines


def match(options: argparse.Namespace) -> None:
    config = read_config(options.config, RunConfig, options.overrides)
    found = partners(config)
    if options.measure:
        deep = next(partner.config for partner in found if partner.name == "equal_inference_flops")
        times = seconds_in_turns((config, deep), options.measure)
        print(f"a step takes {times[0]:.3g} s, with layers of their own {times[1]:.3g} s")
        found = partners(config, times[0] / times[1])
        print(timed_again(config, next(each.config for each in found if each.name == "equal_time"), options.measure))
    out = options.out or Path("matched") / config.run.name
    out.mkdir(parents=True, exist_ok=True)
    for partner in found:
        (out / f"{partner.name}.yaml").write_text(resolved_yaml(partner.config), encoding="utf-8")
    print("\n".join(table(config, found)))
    print(f"{out}: {len(found)} configurations")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(match, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
