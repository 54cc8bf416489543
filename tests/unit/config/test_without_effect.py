"""Settings that nothing would read are refused in files and on command lines, one line for each key."""

from pathlib import Path
from typing import Any

import pytest

from finetune.config import FinetuneConfig
from pretrain.config.read import read_config, resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.schema.section import Section

CASES: list[tuple[list[str], list[str]]] = [
    (
        ["optimizer.name=adafactor", "optimizer.beta1=0.5", "optimizer.beta2=0.9", "optimizer.epsilon=1e-6"],
        ["optimizer.beta1", "optimizer.beta2", "optimizer.epsilon"],
    ),
    (["optimizer.momentum=0.9", "optimizer.adamw_lr=1e-4"], ["optimizer.momentum", "optimizer.adamw_lr"]),
    (["optimizer.decay_steps=5"], ["optimizer.decay_steps"]),
    (["optimizer.schedule=constant", "optimizer.min_lr_ratio=0.5"], ["optimizer.min_lr_ratio"]),
    (
        ["train.loop_sampling={minimum: 2, maximum: 5, sigma: 0.1, per: sequence}"],
        [f"train.loop_sampling.{key}" for key in ("minimum", "maximum", "sigma", "per")],
    ),
    (["train.loop_sampling={distribution: uniform, sigma: 0.1}"], ["train.loop_sampling.sigma"]),
    (["train.loop_sampling={distribution: poisson, sigma: 0.1}"], ["train.loop_sampling.sigma"]),
    (
        ["train.loop_sampling.growth={begin: 0.1, end: 0.2}"],
        [f"train.loop_sampling.growth.{key}" for key in ("begin", "end")],
    ),
    (["model.loop={keys: first, keys_every: 3}"], ["model.loop.keys_every"]),
    (["model.loop={keys: every, keys_window: 3}"], ["model.loop.keys_window"]),
    (["train.backprop_growth.start=1"], ["train.backprop_growth.start"]),
    (["train.memory_gib=40"], ["train.memory_gib"]),
    (
        ["model.loop_regulariser={groups: [query], warmup: 0.5}"],
        ["model.loop_regulariser.groups", "model.loop_regulariser.warmup"],
    ),
    (
        ["data.sources=[{task: addition, supervise: steps}, {path: a, supervise: steps, parameters: {n: 1}}]"],
        ["data.sources[1].parameters", "data.sources[1].supervise"],
    ),
    (["data.sources=[{task: addition, max_epochs: 3}, {path: a}]"], ["data.sources[0].max_epochs"]),
    (
        ["validation={tasks: [addition], num_examples: 5, data_dir: a}"],
        ["validation.tasks", "validation.num_examples", "validation.data_dir"],
    ),
    (["checkpoint={every: 0, keep_every: 500}"], ["checkpoint.keep_every"]),
]


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text("run: {name: run}\n")
    return file


@pytest.mark.parametrize(("overrides", "keys"), CASES)
def test_each_is_refused_by_its_key(empty: Path, overrides: list[str], keys: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        read_config(empty, RunConfig, overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(keys)
    for line, key in zip(lines, keys, strict=True):
        assert line.startswith(f"command line: {key}: has no effect with ")


def test_the_line_says_where_it_is_why_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optimizer:\n  name: adafactor\n  beta2: 0.9\n")
    with pytest.raises(ValueError, match="has no effect") as caught:
        read_config(file, RunConfig)
    assert str(caught.value) == (
        f"{file}:3: optimizer.beta2: has no effect with optimizer.name=adafactor; "
        "remove it or leave it at 0.95, got 0.9"
    )


def test_what_a_later_layer_switches_off_goes_back_to_its_default(tmp_path: Path, empty: Path) -> None:
    """So the run directory's file, which has everything in one layer, can be read again."""
    file, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    file.write_text("run: {name: run}\ntrain: {loop_sampling: {distribution: uniform, maximum: 5}}\n")
    top.write_text("base: base.yaml\ntrain: {loop_sampling: {distribution: fixed}}\n")
    off = "train.loop_sampling.distribution=fixed"
    for config in (read_config(file, RunConfig, [off]), read_config(top, RunConfig)):
        assert config == read_config(empty, RunConfig)
    late = "train.loop_sampling.maximum=6"
    for where, overrides in ((file, [late, off]), (file, [off, late]), (top, [late])):
        with pytest.raises(ValueError, match=r"^command line: train\.loop_sampling\.maximum: has no effect") as caught:
            read_config(where, RunConfig, overrides)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer={name: muon, momentum: 0.9, adamw_lr: 1e-4, beta2: 0.9}"],
        ["optimizer={schedule: wsd, decay_steps: 5, min_lr_ratio: 0}"],
        ["train.loop_sampling={distribution: poisson_lognormal, minimum: 2, maximum: 5, sigma: 0.1}"],
        ["train.loop_sampling={distribution: fixed, growth: {start: 1, begin: 0.1, end: 0.2}}", "model.num_loops=2"],
        ["model.loop_regulariser={weight: 0.1, block_size: 4, groups: [query], warmup: 0.5}"],
        ["validation={tasks: [addition], tasks_every: 5, num_examples: 5, data_dir: a}"],
    ],
)
def test_with_what_reads_them_they_are_taken(empty: Path, overrides: list[str]) -> None:
    read_config(empty, RunConfig, overrides)


def test_the_configuration_that_a_run_directory_keeps_can_be_read(empty: Path, tmp_path: Path) -> None:
    """It spells out every default, those without effect too."""
    config = read_config(empty, RunConfig, ["optimizer.name=adafactor"])
    again = tmp_path / "config.yaml"
    again.write_text(resolved_yaml(config))
    assert read_config(again, RunConfig) == config


def test_what_a_checkpoint_holds_is_not_refused() -> None:
    """An earlier version took such settings."""
    held: dict[str, Any] = {"optimizer": {"name": "adafactor", "beta2": 0.9}}
    assert RunConfig.model_validate(held).optimizer.beta2 == 0.9


def test_fine_tuning_too(empty: Path) -> None:
    given = ["data.train.path=a", "data.validation.path=b", "checkpoint.init_from=c", "method.stop_weight=2"]
    with pytest.raises(ValueError, match=r"method\.stop_weight: has no effect with method\.stop=count"):
        read_config(empty, FinetuneConfig, given)
    assert read_config(empty, FinetuneConfig, [*given, "method.stop=classifier"])


def test_every_declared_key_is_a_field() -> None:
    sections: list[type[Section]] = [RunConfig, FinetuneConfig]
    for section in sections:
        for info in section.model_fields.values():
            if isinstance(info.default, Section):
                assert set(info.default.without_effect()) <= set(type(info.default).model_fields)
                sections.append(type(info.default))


def test_a_path_may_begin_with_the_home_directory(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not fill it in after `key=`, nor YAML."""
    monkeypatch.setenv("HOME", "/home/someone")
    given = ["run.root=~/runs", "data={tokenizer: ~/t.model, sources: [{path: ~/a}, {path: b~c}]}"]
    config = read_config(empty, RunConfig, given)
    assert (config.run.root, config.data.tokenizer) == ("/home/someone/runs", "/home/someone/t.model")
    assert [source.path for source in config.data.sources] == ["/home/someone/a", "b~c"]
