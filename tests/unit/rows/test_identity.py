"""Who a row is about: runs of one configuration, seeds, and what an old row does not say."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.answers.results import CoconutRow
from finetune.config import FinetuneConfig
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.identity import RunIdentity, differing_inputs, digest, loops_of, settings_of, variant_of
from pretrain.rows.jsonl import JsonLines
from tests.support.scaling_rows import make_row

CONFIGS = Path(__file__).parents[3] / "configs"


def identity(*overrides: str, schema: Any = RunConfig, file: str = "tasks/p_hop_small.yaml") -> RunIdentity:
    return RunIdentity.of(read_config(CONFIGS / file, schema, overrides), trained_loops=(1, 4))


def test_what_changes_no_number_is_not_in_the_configuration_of_a_row() -> None:
    first = identity()
    layout = ["train.recompute=loop", "train.micro_batch=2", "logging.wandb=disabled", "checkpoint.every=7"]
    same = identity("run.seed=3", "run.name=other", "validation.every=5", *layout)
    assert (same.variant, same.settings) == (first.variant, first.settings)
    assert same.config != first.config and same.run_id != first.run_id and same.seed == 3
    for change in ("optimizer.lr=0.5", "train.steps=7777", "data.num_streams=2"):
        assert identity(change).variant != first.variant


def test_weights_of_the_same_seed_are_no_other_variant() -> None:
    """Also of rows from before, which name the other run of each seed."""
    named = "checkpoint.init_from=runs/x/cot-seed{run.seed}"
    file: Any = {"schema": FinetuneConfig, "file": "finetune/prosqa_hard_small_from_cot.yaml"}
    seeds = [identity(named, f"run.seed={seed}", **file) for seed in (1, 12)]
    assert seeds[0].variant == seeds[1].variant and seeds[0].settings == seeds[1].settings
    assert seeds[0].config != seeds[1].config
    other = identity("checkpoint.init_from=runs/x/cot-seed1", "run.seed=12", **file)
    assert other.variant != seeds[1].variant and (other.settings or {})["checkpoint.init_from"] == "runs/x/cot-seed1"
    settings = {"checkpoint.init_from": "runs/x/cot-seed1", "optimizer.lr": 0.5}
    old = RunIdentity(seed=1, settings=settings, variant=digest(settings), config="abc")
    assert (old.settings or {})["checkpoint.init_from"] == "runs/x/cot-seed{run.seed}" and old.config == "abc"
    assert old.variant == RunIdentity(seed=1, settings=old.settings, variant=old.variant).variant != digest(settings)


def test_settings_are_what_differs_from_the_defaults() -> None:
    assert settings_of(RunConfig()) == {}
    config = RunConfig.model_validate({"model": {"num_loops": 3}, "optimizer": {"lr": 0.5}, "run": {"seed": 4}})
    assert settings_of(config) == {"model.num_loops": 3, "optimizer.lr": 0.5}


def test_a_loss_of_every_loop_trains_all_of_them() -> None:
    loops = ["model.num_loops=4", "train.loop_loss.over=every"]
    assert loops_of(RunConfig()) == (RunConfig().model.num_loops,) * 2
    assert loops_of(read_config(CONFIGS / "tasks/p_hop_small.yaml", RunConfig, loops)) == (1, 4)


def test_fine_tuning_chooses_by_validation_so_it_counts_there() -> None:
    tuned = [
        variant_of(read_config(CONFIGS / "finetune/prosqa_small.yaml", FinetuneConfig, overrides))
        for overrides in ([], ["engine.zero_stage=3"], ["validation.batch=3"], ["validation.every=2"])
    ]
    assert tuned[0] == tuned[1] == tuned[2] != tuned[3]


def test_a_checkpoint_keeps_the_identity_and_an_old_one_says_its_configuration() -> None:
    first = identity("run.seed=2")
    assert RunIdentity.read({"identity": json.loads(json.dumps(first.as_meta()))}) == first
    config = read_config(CONFIGS / "tasks/p_hop_small.yaml", RunConfig, ["run.seed=2"])
    old = RunIdentity.read({"next_sample": 0, "config": config.model_dump(mode="json")})
    assert (old.run_id, old.data, old.config, old.variant, old.seed) == (None, None, first.config, first.variant, 2)
    assert RunIdentity.read({"saved_model": {}}) == RunIdentity(), "of imported weights nothing is known"


def test_the_unknown_is_equal_to_nothing_and_a_run_knows_its_own_checkpoints() -> None:
    ours, theirs = identity(), identity()
    asked = "examples=a bos=yes checkpoint=c"
    assert differing_inputs(ours, asked, ours, asked) == []
    assert differing_inputs(ours, "examples=a bos=yes", ours, asked) == []
    assert differing_inputs(ours, "examples=a", ours, asked) == ["bos"]
    assert differing_inputs(ours, "examples=a bos=no", ours, asked) == ["bos"]
    assert differing_inputs(ours, None, ours, "examples=a") == ["examples"]
    assert differing_inputs(ours, asked, theirs, asked) == ["run_id"]
    assert differing_inputs(RunIdentity(), "examples=a", ours, "examples=a") == ["run_id", "config"]


def test_rows_say_their_shape() -> None:
    assert make_row().shape == "" and make_row(num_loop_layers=4, num_loops=2).shape == "4⊗2"
    whole = make_row(num_prelude_layers=1, num_loop_layers=4, num_coda_layers=2, num_loops=3, trained_loops=(1, 2))
    assert whole.shape == "1+4⊗3+2" and not whole.is_trained_depth and make_row().is_trained_depth


@pytest.mark.parametrize(
    ("pattern", "record"), [("sweeps/results/*/depth.jsonl", EvaluationRow), ("finetune/results/*/*.jsonl", CoconutRow)]
)
def test_committed_rows_are_read(pattern: str, record: Any) -> None:
    for file in CONFIGS.glob(pattern):
        assert JsonLines(file).read(record, strict=True)


def test_rows_from_before_they_had_an_identity_are_read(tmp_path: Path) -> None:
    old = {
        "run": "prosqa_coconut_small-seed0", "step": 192, "epoch": 0, "stage": 0, "method": "coconut",
        "split": "validation", "num_thoughts": 0, "num_loops": 1, "accuracy": 0.44, "stderr": 0.03, "num_examples": 256,
        "new_tokens": 9.2, "mean_thoughts": 0.0, "seconds_per_example": 0.0027, "flops_per_example": 31344912.0,
        "accuracy_by_chain_length": {"2": 0.45, "3": 0.4}, "examples_by_chain_length": {"2": 182, "3": 74},
    }  # fmt: skip
    (tmp_path / "coconut.jsonl").write_text(json.dumps(old) + "\n")
    (row,) = JsonLines(tmp_path / "coconut.jsonl").read(CoconutRow, strict=True)
    assert (row.run, row.accuracy, row.config, row.seed, row.batch) == (old["run"], 0.44, None, None, None)


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    row = make_row(**{**vars(identity()), "trained_loops": (1, 6)}, is_main=True, inputs="examples=a")
    file = JsonLines(tmp_path / "depth.jsonl")
    file.append([row])
    assert file.read(EvaluationRow, strict=True) == [row]
