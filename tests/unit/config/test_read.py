"""Files, overrides and help: what is read, and the exact lines that people get when something is wrong."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config import FinetuneConfig, FinetuneOptimizerSection
from pretrain.config.help_page import config_keys
from pretrain.config.read import read_config, resolved_yaml
from pretrain.config.run import OptimizerSection, RunConfig
from pretrain.schema.section import Section
from pretrain.train import COMMAND_LINE

Write = Callable[..., Path]
parse, help_text = COMMAND_LINE.parse, COMMAND_LINE.help_text


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    return read_config(path, RunConfig, overrides)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write YAML text to a file of a fresh folder and return its path."""

    def write_file(text: str | bytes, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, with the folder of `path` taken out."""
    with pytest.raises((ValueError, OSError)) as caught:
        load_config(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


# --- what is read -----------------------------------------------------------------------------------------------------


def test_defaults_then_bases_then_file_then_overrides(write: Write) -> None:
    write("model: {num_loops: 2, ffn_size: 64, init_std: 0.1}\nvalidation: {num_loops: [1, 2]}", "deep.yaml")
    write("base: deep.yaml\nmodel: {num_loops: 3, ffn_size: 128}", "middle.yaml")
    path = write("base: middle.yaml\nmodel: {num_loops: 4}\nvalidation: {num_loops: [7]}")
    config = load_config(path, ["model.num_loops=5"])
    model = config.model
    assert (model.num_loops, model.ffn_size, model.init_std, model.hidden_size) == (5, 128, 0.1, 512)
    assert config.validation.num_loops == (7,)


def test_a_base_is_relative_to_the_file_that_names_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write("run: {name: base}", "base.yaml")
    assert load_config(write("base: ../base.yaml", "inner/run.yaml")).run.name == "base"


def test_values_of_other_keys_stand_in_the_name_of_a_run(write: Write) -> None:
    path = write("run:\n  name: '{model.num_loop_layers}x{model.num_loops}-seed{run.seed}'\nmodel: {num_loops: 3}")
    assert [read_config(path, RunConfig, more).run.name for more in ([], ["run.seed=2"])] == ["8x3-seed0", "8x3-seed2"]


def test_they_stand_in_the_run_that_it_starts_from(write: Write) -> None:
    path = write("checkpoint: {init_from: 'runs/start-seed{run.seed}'}")
    assert read_config(path, RunConfig, ["run.seed=2"]).checkpoint.init_from == "runs/start-seed2"


@pytest.mark.parametrize("text", ["", "# nothing yet", "model:\n  # num_loops: 3\ntrain: ~", "{}"])
def test_empty_files_and_sections_leave_the_defaults(write: Write, text: str) -> None:
    assert load_config(write(text)) == RunConfig()


def test_values_take_the_type_of_their_field(write: Write) -> None:
    path = write(
        "optimizer: {lr: 3e-4}\ntrain: {steps: 1_000, compile: true, exit_after: null}\n"
        "run: {name: 1e5, root: 2024-01-01}"
    )
    config = load_config(
        path, ["data.sources=[{path: 7, weight: 2}]", "data.tokenizer=no", "model.loop_regulariser={block_size: 4}"]
    )
    assert (config.optimizer.lr, config.train.steps, config.train.compile, config.train.exit_after) == (
        3e-4,
        1000,
        True,
        None,
    )
    assert (config.run.name, config.run.root, config.data.tokenizer) == ("1e5", "2024-01-01", "no")
    assert [(source.path, source.weight) for source in config.data.sources] == [("7", 2.0)]
    assert config.model.loop_regulariser.block_size == 4


def test_options_and_overrides_come_in_any_order(write: Write) -> None:
    path = str(write(""))
    command = parse(["train.steps=500", "--dry-run", "--config", path, "--world-size=8", "run.seed=3"])
    assert (command.dry_run, command.world_size, command.config.train.steps, command.config.run.seed) == (
        True,
        8,
        500,
        3,
    )
    command = parse([f"--config={path}"])
    assert (command.dry_run, command.world_size, command.config) == (False, None, RunConfig())


def test_without_a_file_the_quickstart_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert parse([]).config.run.name == "quickstart"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OSError,
        match=r"^configs/pretrain/quickstart.yaml: No such file .* \(the default; choose one with --config FILE\)$",
    ):
        parse([])


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_every_problem_has_its_line(write: Write) -> None:
    path = write(
        "model:\n  num_loop: 3\ntrain:\n  steps: 4\n  steps: 5\n  lr: 3e-4\ndata:\n  sources:\n"
        "    - {path: x, wieght: 2}\nnum_loops: 3\nrun: 7\nlogging:\n  q: 1\n"
    )
    assert problems(path) == [
        "run.yaml:2: model.num_loop: unknown key, did you mean model.num_loops?",
        "run.yaml:5: train.steps: given twice; keep one",
        "run.yaml:6: train.lr: unknown key, did you mean optimizer.lr?",
        "run.yaml:9: data.sources[0].wieght: unknown key, did you mean data.sources[].weight?",
        "run.yaml:10: num_loops: unknown key, did you mean model.num_loops or validation.num_loops?",
        "run.yaml:11: run: needs keys and values, got 7",
        "run.yaml:13: logging.q: unknown key; there are every, tensorboard, wandb, wandb_project",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=ten", "train.steps: needs a whole number, got ten"),
        ("train.steps=4.5", "train.steps: needs a whole number, got 4.5"),
        ("train.steps=true", "train.steps: needs a whole number, got true"),
        ("train.steps=", "train.steps: needs a whole number, got null"),
        ("train.steps=[5]", "train.steps: needs a whole number, got [5]"),
        ("train.seq_len=0", "train.seq_len: must be larger than 0, got 0"),
        ("run.seed=-1", "run.seed: must be at least 0, got -1"),
        ("optimizer.lr=fast", "optimizer.lr: needs a number, got fast"),
        ("optimizer.min_lr_ratio=1.5", "optimizer.min_lr_ratio: must be at most 1.0, got 1.5"),
        ("optimizer.beta1=1", "optimizer.beta1: must be smaller than 1.0, got 1"),
        ("train.compile=maybe", "train.compile: needs true or false, got maybe"),
        ("train.precision=fp8", "train.precision: needs one of fp64, fp32 or bf16, got fp8"),
        ("run.name=../x", "run.name: needs letters, digits and ._+- only, the first a letter or digit, got ../x"),
        ("run.name=[]", "run.name: needs text, got []"),
        ("run.name=a{model.num_loop}", "run.name: {model.num_loop}: unknown key, did you mean model.num_loops?"),
        ("checkpoint.init_from=runs/{run.sed}", "checkpoint.init_from: {run.sed}: unknown key, did you mean run.seed?"),
        (
            "run.name=a{parallel}",
            "run.name: {parallel}: unknown key; there are overlap, pipeline, reduce_precision, sequence, tensor",
        ),
        ("validation.num_loops=3", "validation.num_loops: needs a list, such as [1, 2], got 3"),
        ("validation.num_loops=[1, x]", "validation.num_loops[1]: needs a whole number, got x"),
        ("model.num_loop=3", "model.num_loop: unknown key, did you mean model.num_loops?"),
        ("modle.num_loops=3", "modle: unknown key, did you mean model?"),
        (
            "base=x.yaml",
            "base: unknown key; there are alarms, checkpoint, data, logging, model, optimizer, parallel, profile, "
            "ranks, run, train, validation",
        ),
        ("model=3", "model: needs keys and values, got 3"),
        ("train.steps=[1", "train.steps: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("train.steps=[[[[[[[" + "[" * 2000, "train.steps: not valid YAML: nested too deeply"),
        ("train.steps", "train.steps: neither option nor override; did you mean KEY=VALUE, such as train.steps=100?"),
        ("run.yaml", "run.yaml: neither option nor override; did you mean --config run.yaml?"),
    ],
)
def test_a_bad_override_is_one_line(write: Write, override: str, expected: str) -> None:
    assert problems(write(""), override) == [f"command line: {expected}"]


def test_a_source_is_a_folder_or_a_task(write: Write) -> None:
    expected = "with overrides: data.sources: each names either a path, a folder of shards, or a task"
    for source in ("{weight: 1}", "{path: x, task: p_hop}"):
        (found,) = problems(write(""), f"data.sources=[{source}]")
        assert found.endswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  steps: 0", "run.yaml:2: train.steps: must be larger than 0, got 0"),
        (
            "data:\n  sources:\n    - path: x\n    - path: y\n      weight: 0",
            "run.yaml:5: data.sources[1].weight: must be larger than 0.0, got 0",
        ),
        (
            "model: {hidden_size: 500}",
            "run.yaml: model.hidden_size=500 is not divisible by model.num_attention_heads=8",
        ),
        ("train: {global_batch: 9}", "run.yaml: train.global_batch=9 is not divisible by train.micro_batch=8"),
        ("- a\n- b", "run.yaml:1: file: needs keys and values, got [a, b]"),
        ("train:\n\tsteps: 3", "run.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n--- \nb: 2", "run.yaml:2: not valid YAML: but found another document"),
        ("model: &x [*x]", "run.yaml:1: not valid YAML: an alias; share settings with base: FILE"),
        (b"run:\n  name: caf\xe9", "run.yaml: not UTF-8 text: byte 16 is 0xe9"),
        ("base: none.yaml", "run.yaml:1: base: none.yaml: No such file or directory"),
        ("\nbase: [a]", "run.yaml:2: base: needs the name of a YAML file, got [a]"),
        (
            "variants: {adam: {}}",
            "run.yaml:1: variants: unknown key, did you mean ranks?",
        ),
        ("base: run.yaml", "run.yaml:1: base: goes in a circle: run.yaml -> run.yaml"),
    ],
)
def test_a_bad_file_is_one_line(write: Write, text: str | bytes, expected: str) -> None:
    assert problems(write(text)) == [expected]


def test_a_problem_in_a_base_names_the_base(write: Write) -> None:
    write("train:\n  steps: -1\n  micro_batch: 3", "base.yaml")
    path = write("base: base.yaml\ntrain: {micro_batch: 2}")
    assert problems(path) == ["base.yaml:2: train.steps: must be larger than 0, got -1"]
    assert problems(path, "train.steps=-2") == ["command line: train.steps: must be larger than 0, got -2"]


def test_a_circle_of_bases_is_shown(write: Write) -> None:
    write("base: run.yaml", "other.yaml")
    assert problems(write("base: other.yaml")) == [
        "other.yaml:1: base: goes in a circle: run.yaml -> other.yaml -> run.yaml"
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.num_loops=3"], "--model.num_loops=3: unknown option; write model.num_loops=3"),
        (["--dry"], "--dry: unknown option; --help lists options and keys"),
        (["--dry-run", "--world-size", "0"], "--world-size: needs at least 1, got 0; --help lists options and keys"),
        (
            ["--dry-run", "--world-size", "x"],
            "--world-size: needs a whole number, got x; --help lists options and keys",
        ),
        (["--world-size", "2"], "--world-size goes with --dry-run; the launcher sets the ranks of a real run"),
        (["--without-data"], "--without-data goes with --dry-run; a real run reads its data"),
    ],
)
def test_a_bad_option_is_one_line(arguments: list[str], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(arguments)
    assert str(caught.value) == f"command line: {expected}"


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_any_override_is_read_or_refused(text: str) -> None:
    try:
        config = load_config(Path("/dev/null"), [f"data.tokenizer={text}"])
    except ValueError as error:
        assert str(error).startswith("command line: data.tokenizer")
    else:
        assert isinstance(config.data.tokenizer, str)


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=60))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        load_config(path)
    except (ValueError, OSError) as error:
        assert str(error).startswith(f"{path}:")


# --- what is written --------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
positive = st.floats(1e-300, 1e300)


@settings(deadline=None)  # the machine may be busy
@given(texts, texts, positive, st.lists(st.integers(1, 10_000), max_size=5), st.none() | positive)
def test_resolved_configuration_loads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    root: str,
    path: str,
    lr: float,
    num_loops: list[int],
    minutes: float | None,
) -> None:
    config = RunConfig.model_validate(
        {
            "run": {"root": root, "name": "1e5"},
            "data": {"sources": [{"path": path, "weight": lr}, {"path": "x: [y]"}]},
            "optimizer": {"lr": lr},
            "validation": {"num_loops": num_loops, "tasks_every": 5, "tasks": ["addition", "gsm8k"]},
            "train": {"exit_after": minutes},
        }
    )
    file = tmp_path_factory.getbasetemp() / "resolved.yaml"
    file.write_text(resolved_yaml(config), encoding="utf-8", newline="")
    assert load_config(file) == config


def test_resolved_configuration_means_the_same_to_other_readers_of_yaml() -> None:
    config = RunConfig.model_validate(
        {"run": {"name": "1e5", "root": "no"}, "optimizer": {"lr": 1e-5}, "data": {"sources": [{"path": "on"}]}}
    )
    assert yaml.safe_load(resolved_yaml(config)) == config.model_dump(mode="json")


# --- help -------------------------------------------------------------------------------------------------------------


def fields(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all plain fields, from an independent walk over the sections' JSON schema."""
    schema = section.model_json_schema()

    def walk(node: dict, prefix: str) -> Iterator[str]:
        for name, child in node["properties"].items():
            reference = child.get("$ref") or child.get("items", {}).get("$ref", "")
            if "items" in child or not reference:
                yield prefix + name
            if reference:
                yield from walk(
                    schema["$defs"][reference.rpartition("/")[2]], f"{prefix}{name}{'[]' if 'items' in child else ''}."
                )

    yield from walk(schema, prefix)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_lists_every_key_within_the_width(width: int) -> None:
    text = help_text(width)
    listed = [line.strip().partition("=")[0].removesuffix(" (required)").split(" ")[0] for line in text.splitlines()]
    assert set(fields(RunConfig)) <= set(listed)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("schema", [RunConfig, FinetuneConfig])
def test_every_key_is_documented(schema: type[Section]) -> None:
    assert [key for key, info in config_keys(schema) if "." in key and not info.description] == []


def test_a_key_with_another_default_keeps_its_meaning_and_may_have_another() -> None:
    ours, theirs = OptimizerSection.model_fields, FinetuneOptimizerSection.model_fields
    assert ours["beta2"].description == theirs["beta2"].description
    assert (ours["beta2"].default, theirs["beta2"].default) == (0.95, 0.999)
    assert ours["weight_decay"].description != theirs["weight_decay"].description


def test_help_shows_type_range_default_and_meaning() -> None:
    lines = help_text(100).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("  optimizer.decay_steps="))
    assert lines[start].split(maxsplit=1) == ["optimizer.decay_steps=null", "integer > 0 or null"]
    assert lines[start + 1].strip() == "Length of the wsd decay, in steps. Default: a fifth of train.steps."
    assert "  data.sources[].task=null" in "\n".join(lines)


def test_help_is_printed_and_ends_the_program() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "pretrain.train", "--help"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.startswith("Pretrain a looped GPT.")
