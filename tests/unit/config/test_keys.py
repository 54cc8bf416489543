"""Every key of the configurations is used: a shipped configuration sets it, or a test works with another value than its
default."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.config import FinetuneConfig
from finetune.kinds import kind_of
from finetune.reinforce.config import GrpoConfig
from pretrain.config.help_page import config_keys, section_in
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepConfig, cells
from pretrain.schema.section import Section
from tests.support.shipped import schema_of

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
TESTED = {
    RunConfig: {
        "run.root": "tests/distributed/training.py",
        "parallel.overlap": "tests/distributed/test_overlap.py",
        "parallel.reduce_precision": "tests/distributed/test_reduce_precision.py",
        "validation.include_path": "tests/unit/eval/test_plugins.py",
        "model.head_size": "tests/distributed/cases.py",
        "train.compile": "tests/distributed/test_compiled.py",
        "train.memory_gib": "tests/unit/plan/test_policy.py",
        "train.teacher.run": "tests/unit/hf/test_teacher.py",
        "train.teacher.weight": "tests/unit/hf/test_teacher.py",
        "model.loop.diagonal.drive": "tests/support/loop_designs.py",
        "model.loop.diagonal.hold": "tests/support/loop_designs.py",
        "model.loop.hyper.dynamic": "tests/support/loop_designs.py",
        "model.loop.keys_every": "tests/unit/model/test_shared_keys.py",
        "model.loop.own": "tests/support/own_loops.py",
        "train.loop_loss.short_weight": "tests/distributed/test_loop_variants.py",
        "train.loop_loss.consistency_weight": "tests/distributed/test_loop_variants.py",
        "model.loop_regulariser.groups": "tests/unit/model/test_regulariser.py",
        "data.cut_documents": "tests/unit/data/test_long_documents.py",
        **dict.fromkeys(
            ["data.temperature", "data.sources[].max_tokens", "data.sources[].max_epochs"],
            "tests/unit/data/test_mixture.py",
        ),
        "train.deterministic": "tests/distributed/test_training.py",
        "train.exit_after": "tests/distributed/test_training.py",
        "train.hooks[].every": "tests/unit/watch/test_hook_plugins.py",
        "train.hooks[].parameters": "tests/unit/watch/test_hook_plugins.py",
        "train.max_bad_steps": "tests/distributed/test_training.py",
        "train.loop_sampling.sigma": "tests/unit/optim/test_loop_count.py",
        "optimizer.beta1": "tests/unit/optim/test_optimizers.py",
        "optimizer.clip_grad_norm": "tests/distributed/test_optimizer.py",
        "optimizer.epsilon": "tests/distributed/test_optimizer.py",
        "optimizer.momentum": "tests/unit/optim/test_muon.py",
        **dict.fromkeys(
            [
                *(f"alarms.loss_spike.{key}" for key in ("policy", "window", "deviations", "steps")),
                *(f"alarms.states_alike.{key}" for key in ("policy", "correlation")),
                *(f"alarms.loops_unused.{key}" for key in ("policy", "difference", "validations")),
                "alarms.max_rollbacks",
            ],
            "tests/unit/watch/test_alarms.py",
        ),
        "ranks.hang_minutes": "tests/distributed/test_hang.py",
        "ranks.check_weights_every": "tests/distributed/test_replicas.py",
        "ranks.slow_factor": "tests/distributed/test_stragglers.py",
        "profile.steps": "tests/distributed/test_step_profile.py",
        "checkpoint.keep_last": "tests/distributed/test_training.py",
        "checkpoint.resume": "tests/distributed/test_training.py",
        "checkpoint.asynchronous": "tests/distributed/test_training.py",
        "logging.wandb": "tests/distributed/training.py",
        "logging.wandb_project": "tests/support/wandb_child.py",
        "logging.tensorboard": "tests/unit/run/test_trackers.py",
    },
    FinetuneConfig: {
        "data.train.seed": "tests/unit/finetune/test_examples.py",
        "data.train.step_separator": "tests/unit/finetune/test_examples.py",
        "data.validation.step_separator": "tests/unit/finetune/test_examples.py",
        "data.test.step_separator": "tests/unit/finetune/test_examples.py",
        "method.distillation_weight": "tests/unit/finetune/test_config.py",
        "method.stop_weight": "tests/distributed/test_finetuning.py",
        "curriculum.smoothing": "tests/unit/finetune/test_curriculum.py",
        "train.deterministic": "tests/distributed/test_finetuning.py",
        "train.exit_after": "tests/distributed/test_finetuning.py",
        "optimizer.beta1": "tests/distributed/test_finetuning.py",
        "optimizer.epsilon": "tests/distributed/test_finetuning.py",
        "engine.tensor": "tests/distributed/test_finetuning.py",
        "checkpoint.keep_last": "tests/golden/finetuned.yaml",
        "checkpoint.resume": "tests/distributed/test_finetuning.py",
    },
    GrpoConfig: {
        "rollout.group_size": "tests/unit/finetune/test_reinforce.py",
        "rollout.temperature": "tests/unit/finetune/test_reinforce.py",
        "rollout.batch": "tests/distributed/test_reinforce.py",
        "grpo.advantage": "tests/distributed/test_reinforce.py",
        "grpo.clip": "tests/unit/finetune/test_reinforce.py",
        "grpo.clip_high": "tests/unit/finetune/test_reinforce.py",
        "grpo.kl_weight": "tests/unit/finetune/test_reinforce.py",
        "train.updates": "tests/distributed/test_reinforce.py",
        "train.num_loops": "tests/distributed/test_reinforce.py",
        "train.precision": "tests/distributed/test_reinforce.py",
        "train.deterministic": "tests/distributed/test_reinforce.py",
        "train.exit_after": "tests/distributed/test_reinforce.py",
    },
}
"""Keys that no shipped configuration sets, and a file of the tests that does."""


def shipped(schema: type[Section]) -> Iterator[Section]:
    """The shipped configurations of a kind, and the runs of the sweeps over them."""
    for path in CONFIGS.glob("*/*.yaml"):
        if path.parent.name in ("pretrain", "loops", "tasks", "finetune") and schema_of(path) is schema:
            yield read_config(path, schema)
    for sweep in (read_config(path, SweepConfig) for path in (CONFIGS / "sweeps").glob("*.yaml")):
        if kind_of(sweep).schema is schema:
            yield from (read_config(ROOT / sweep.config, schema, cell.overrides) for cell in cells(sweep))


def keys_set(section: Section, prefix: str = "") -> Iterator[str]:
    """Keys whose value is not the default."""
    for name, info in type(section).model_fields.items():
        value: Any = getattr(section, name)
        inner, in_list = section_in(info.annotation)
        for item in () if inner is None else value if in_list else (value,):
            yield from keys_set(item, f"{prefix}{name}{'[]' if in_list else ''}.")
        if value != info.get_default(call_default_factory=True):
            yield prefix + name


@pytest.mark.parametrize("schema", list(TESTED))
def test_every_key_is_set_by_a_shipped_configuration_or_by_a_test(schema: type[Section]) -> None:
    found = {key for config in shipped(schema) for key in keys_set(config)}
    keys = {key for key, info in config_keys(schema) if section_in(info.annotation)[0] is None}
    if schema is not RunConfig:  # the other sections of these names are the same classes, and the model is the same
        same = ["run.", "model.", "logging.", "ranks.", "profile."]
        same += ["data.", "optimizer.", "engine.", "checkpoint."] if schema is GrpoConfig else []
        keys = {key for key in keys if not key.startswith(tuple(same))}
    assert sorted(keys - found) == sorted(TESTED[schema])


@pytest.mark.parametrize(("key", "file"), [pair for table in TESTED.values() for pair in table.items()])
def test_the_file_of_a_key_sets_it(key: str, file: str) -> None:
    text, name = (ROOT / file).read_text(encoding="utf-8"), key.rpartition(".")[2]
    assert any(f"{name}{sign}" in text for sign in ('": ', "=", ": ")), f"{file} does not set {key}"
