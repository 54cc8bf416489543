"""Partners of looped models cost the same in what they are named for, on every shipped looped configuration."""

import json
from pathlib import Path

import pytest

from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepConfig, cells
from pretrain.plan.partners import CLOSE, costs_of, partners
from tests.support.commands import Commands

ROOT = Path(__file__).parents[3]
FILES = [*sorted((ROOT / "configs" / "loops").glob("*.yaml")), *sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))]
LOOPED = [path for path in FILES if read_config(path, RunConfig).model.num_loops > 1]


@pytest.mark.parametrize("path", LOOPED, ids=lambda path: path.stem)
def test_partners_are_equal_in_what_they_are_named_for(path: Path) -> None:
    config = read_config(path, RunConfig)
    own, found = costs_of(config), {partner.name: partner for partner in partners(config)}
    for partner in found.values():
        assert partner.config.model.num_loops == 1 and partner.config.model.loop == type(config.model.loop)()
        for cost in partner.equal:
            assert getattr(costs_of(partner.config), cost) == pytest.approx(getattr(own, cost), rel=CLOSE)
    # they differ in the rest, or the comparison would say nothing
    shallow, deep = (costs_of(found[name].config).over(own) for name in ("equal_parameters", "equal_inference_flops"))
    assert shallow["inference_flops"] < 0.9 and deep["parameters"] > 1.1
    shares = config.model.loop.keys != "own" and not config.model.loop.keys_window
    assert len({partner.config.run.name for partner in found.values()} | {config.run.name}) == 5 + shares
    costs = {cost for partner in found.values() for cost in partner.equal}
    assert costs | ({"cache_bytes"} if config.model.loop.keys_window else set()) == set(vars(own))


@pytest.mark.parametrize(
    ("name", "equal"),
    [("loop_designs_text_small", ("training_flops", "parameters")), ("loop_rivals_small", ("training_flops",))],
)
def test_arms_of_a_sweep_over_loops_cost_the_same(name: str, equal: tuple[str, ...]) -> None:
    """But for the layers of their own weights, which are no fewer weights at equal depth."""
    sweep = read_config(ROOT / "configs" / "sweeps" / f"{name}.yaml", SweepConfig)
    configs = [read_config(ROOT / sweep.config, RunConfig, [*cell.overrides]) for cell in cells(sweep)]
    wanted = costs_of(configs[0])
    assert len({config.train.steps for config in configs}) > 3
    for config in configs:
        ratios = costs_of(config).over(wanted)
        for cost in equal if config.model.num_loop_layers == 2 else equal[:1]:
            assert ratios[cost] == pytest.approx(1, abs=CLOSE), config


def test_training_at_drawn_loop_counts_costs_their_mean() -> None:
    drawn = ["train.loop_sampling.distribution=uniform", "train.loop_sampling.maximum=7", "model.num_loops=2"]
    config = read_config(ROOT / "configs" / "loops" / "plain.yaml", RunConfig, drawn)
    fixed = read_config(ROOT / "configs" / "loops" / "plain.yaml", RunConfig, ["model.num_loops=4"])
    assert costs_of(config).training_flops == costs_of(fixed).training_flops
    longer = next(partner for partner in partners(config) if partner.name == "equal_training_flops")
    assert longer.config.train.steps > 1.4 * config.train.steps


def test_a_partner_of_equal_time_has_steps_by_the_measured_ratio() -> None:
    config = read_config(ROOT / "configs" / "loops" / "plain.yaml", RunConfig)
    (timed,) = [partner for partner in partners(config, 0.9) if partner.name == "equal_time"]
    assert timed.config.train.steps == round(0.9 * config.train.steps)


def test_a_model_without_loops_is_refused() -> None:
    config = read_config(ROOT / "configs" / "loops" / "plain.yaml", RunConfig, ["model.num_loops=1"])
    with pytest.raises(ValueError, match=r"model\.num_loops=1: a model without loops is its own partner"):
        partners(config)


def test_what_is_written_reads_back_and_both_are_timed(tmp_path: Path, commands: Commands) -> None:
    (tmp_path / "symbols.yaml").write_text(
        json.dumps({"base": str(ROOT / "configs" / "tasks" / "p_hop_small.yaml"), "model": {"hidden_size": 32}})
    )
    small = ["model.ffn_size=64", "train.global_batch=2", "train.micro_batch=2"]
    options = ["--config", tmp_path / "symbols.yaml", *small, "--out", tmp_path / "out", "--measure", "2"]
    done = commands.run(ROOT / "tools" / "match.py", *options, forks=True)
    assert done.returncode == 0, done.stderr
    found = {path.stem: read_config(path, RunConfig) for path in (tmp_path / "out").glob("*.yaml")}
    assert len(found) == 5 and found["equal_inference_flops"].model.num_loop_layers == 4
    assert "a step takes" in done.stdout and "timed again, equal_time takes" in done.stdout and "1.000x" in done.stdout
