"""Configurations, command line, plan and examples of fine-tuning: what is shipped loads, and what does not fit is
named."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from finetune.coconut import COMMAND_LINE, main
from finetune.config import FinetuneConfig, require_last_stage
from finetune.examples.examples import encode_examples, load_examples
from finetune.examples.sequence import RowMaker
from finetune.method.curriculum import CurriculumSection, cut_at, final_stage
from finetune.method.methods import METHODS
from finetune.run.plan import plan_rows
from pretrain.config.read import read_config, resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepConfig, cells
from pretrain.data.tokenizers.tokenizer import Tokenizer
from tests.support.finetuned_runs import save_run
from tests.support.shipped import schema_of

ROOT = Path(__file__).parents[3]
FILES = sorted(path for path in (ROOT / "configs" / "finetune").glob("*.yaml") if schema_of(path) is FinetuneConfig)
BASES = sorted(
    f"{task}{size}.yaml" for task in ("prosqa", "prosqa_hard", "prontoqa", "gsm8k") for size in ("", "_small")
)
SMALL = ROOT / "configs" / "finetune" / "prosqa_small.yaml"


class Case(NamedTuple):
    """A shipped configuration with a method."""

    path: Path
    overrides: tuple[str, ...]
    run_name: str


def shipped() -> Iterator[Case]:
    for path in FILES:
        task, _, size = path.stem.partition("_")
        is_base = path.name in BASES
        for method in METHODS if is_base else ():
            yield Case(path, (f"method.name={method}",), f"{task}_{method}{size and '_' + size}")
        if not is_base:
            is_named_by_method = "{method.name}" in path.read_text()
            yield Case(path, (), f"{task}_coconut_{size}" if is_named_by_method else path.stem)


CASES = list(shipped())
SMALL_CASES = [case for case in CASES if "small" in case.path.stem and not case.path.stem.startswith("gsm8k")]


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run to start from, in the place of GPT-2 and of the quick start."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    save_run(folder)
    return str(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.run_name)
def test_a_configuration_plans_and_round_trips_with_every_method(case: Case, tmp_path: Path, other_run: str) -> None:
    config = read_config(case.path, FinetuneConfig, case.overrides)
    assert config.run.name == case.run_name
    if config.checkpoint.init_from is None:
        resolved = tmp_path / "config.yaml"
        resolved.write_text(resolved_yaml(config))
        assert read_config(resolved, FinetuneConfig) == config
    else:
        config = read_config(case.path, FinetuneConfig, [*case.overrides, f"checkpoint.init_from={other_run}"])
    plan = plan_rows(config, 1)
    assert dict(plan)["step"].endswith(f"= {config.train.effective_batch}")
    last = final_stage(config.curriculum, config.chosen_method)
    assert f" to {config.train.epochs - 1:3d}: stage {last}, " in plan[-1][1]


@pytest.mark.parametrize(
    ("name", "stages", "thoughts", "epochs", "new_tokens", "has_markers"),
    [("prosqa", 6, 1, (5, 5), 128, True), ("prontoqa", 6, 1, (5, 5), 128, True), ("gsm8k", 3, 2, (6, 3), 64, False)],
)
def test_the_files_of_the_paper_are_those_of_its_text_and_of_its_code(
    name: str, stages: int, thoughts: int, epochs: tuple[int, int], new_tokens: int, has_markers: bool
) -> None:
    """Hao et al. 2024, section 4.2, and the defaults of what its code builds on, which the paper leaves out: dropout,
    no warm-up, no clipping, no mixed stages."""
    config = read_config(ROOT / "configs" / "finetune" / f"{name}.yaml", FinetuneConfig)
    train, optimizer, curriculum = config.train, config.optimizer, config.curriculum
    assert (train.dropout, train.epochs, train.effective_batch, train.precision) == (0.1, 50, 128, "fp32")
    assert (optimizer.lr, optimizer.weight_decay, optimizer.beta2) == (1e-4, 0.01, 0.999)
    assert (optimizer.warmup_steps, optimizer.clip_grad_norm, optimizer.reset) == (0, 0, "stage")
    assert (curriculum.num_stages, curriculum.thoughts_per_step, curriculum.uniform_prob) == (stages, thoughts, 0)
    assert (curriculum.first_stage_epochs, curriculum.epochs_per_stage) == epochs and curriculum.pad_thoughts
    assert (config.validation.max_new_tokens, config.method.markers_in_first_stage) == (new_tokens, has_markers)
    assert (config.validation.every, config.method.stop, config.method.jacobi_passes) == (1, "count", None)


def test_the_dry_run_reads_the_examples_and_refuses_what_cannot_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, absent, bad = tmp_path / "t.txt", tmp_path / "absent.json", tmp_path / "bad.txt"
    there.write_text("1||<<2>> #### 3")
    bad.write_text("1||two words #### 3")
    task = "{task: null, num_examples: null, parameters: {}, path: "
    command = ["--config", str(SMALL), "--dry-run", "run.root=" + str(tmp_path)]
    files = [f"data.train={task}{bad}}}", f"data.validation={task}{there}}}", f"data.test={task}{absent}}}"]
    assert main([*command, *files]) == 2
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert first.startswith(f"error: {bad}: row 0: where its steps end is not clear")
    assert second.endswith(f"{absent}: no such file, of data.test.path")
    assert said.out.splitlines()[-1][15:] == f"validation: 1 examples of {there}"
    assert main([*command, *files, "--without-data"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("run directory  ")
    assert main([*command, "data.test.parameters={num_node: 3}"]) == 2
    said = capsys.readouterr()
    assert said.err == "error: task prosqa_symbolic: no parameter num_node, did you mean num_nodes?\n"
    assert said.out.splitlines()[-2][15:] == "train: 12,288 examples of prosqa_symbolic"


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "num_parameters"),
    [("1b", 16, 2048, 32, "1,235,814,400"), ("3b", 28, 3072, 24, "3,212,749,824")],
)
@pytest.mark.parametrize("method", ["coconut", "codi", "lotus"])
def test_llama_is_planned_from_its_shape_alone(
    name: str, layers: int, width: int, heads: int, num_parameters: str, method: str
) -> None:
    """Without weights: the architecture of Llama 3.2 described in place of the run that it is imported into."""
    shape = {
        "num_loop_layers": layers, "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": 8,
        "ffn_size": 8192, "vocab_size": 128256, "rope_theta": 500000, "tied_head": "true",
    }  # fmt: skip
    head = "model.head_size=128" if name == "3b" else "model.head_size=64"
    described = [f"model.{key}={value}" for key, value in shape.items()]
    path = ROOT / "configs" / "finetune" / f"gsm8k_llama_{name}.yaml"
    overrides = ["checkpoint.init_from=null", "data.tokenizer=symbols:0123456789", "train.seq_len=512", head]
    config = read_config(path, FinetuneConfig, [*described, *overrides, f"method.name={method}"])
    plan = plan_rows(config, 8)
    assert any(num_parameters in text for _, text in plan), plan
    assert config.curriculum.first_stage_epochs == 3 and config.curriculum.epochs_per_stage == 1
    assert config.curriculum.thoughts_per_step == (25 if method == "lotus" else 1)


@pytest.mark.parametrize("name", BASES)
def test_a_method_is_the_same_run_in_a_sweep_and_on_the_command_line(name: str) -> None:
    base = ROOT / "configs" / "finetune" / name
    sweep = read_config(ROOT / "configs" / "sweeps" / name, SweepConfig)
    for cell in cells(sweep):
        method, seed = cell.name.split("-seed")
        command = COMMAND_LINE.parse(["--config", str(base), f"method.name={method}", f"run.seed={seed}"])
        assert command.config == read_config(ROOT / sweep.config, FinetuneConfig, cell.overrides)


@pytest.mark.parametrize(
    ("name", "curriculum"),
    [
        ("prosqa", {"num_stages": 8, "tokens_per_stage": 8, "first_stage_epochs": 5, "epochs_per_stage": 4}),
        ("prosqa_small", {"num_stages": 3, "tokens_per_stage": 3, "first_stage_epochs": 3, "epochs_per_stage": 1}),
        ("prontoqa", {"num_stages": 12, "tokens_per_stage": 8, "first_stage_epochs": 5, "epochs_per_stage": 3}),
        ("prontoqa_small", {"num_stages": 4, "tokens_per_stage": 24, "first_stage_epochs": 3, "epochs_per_stage": 1}),
        ("gsm8k", {"num_stages": 5, "tokens_per_stage": 8, "first_stage_epochs": 0, "epochs_per_stage": 1}),
        ("gsm8k_12x2", {"num_stages": 5, "tokens_per_stage": 8, "first_stage_epochs": 0, "epochs_per_stage": 1}),
        ("gsm8k_small", {"num_stages": 4, "tokens_per_stage": 8, "first_stage_epochs": 1, "epochs_per_stage": 1}),
    ],
)
def test_icot_comes_with_its_curriculum_and_no_other_method_has_it(
    name: str, curriculum: dict[str, int], other_run: str
) -> None:
    """Of every data set: the chain goes by tokens, as in Deng et al. 2024; what is on the command line counts more."""
    path, start = ROOT / "configs" / "finetune" / f"{name}.yaml", [f"checkpoint.init_from={other_run}"]
    start = start if "small" not in name or "gsm8k" in name else []
    icot = read_config(path, FinetuneConfig, ["method.name=icot", *start])
    assert icot.curriculum.model_dump() | curriculum == icot.curriculum.model_dump()
    assert any(f" {curriculum['tokens_per_stage']} tokens removed, 0 slots" in text for _, text in plan_rows(icot, 1))
    names = [name for name in METHODS if name not in ("icot", "lotus")]  # lotus has blocks of its own
    others = [read_config(path, FinetuneConfig, [f"method.name={name}"]) for name in names]
    assert all(other.curriculum == others[0].curriculum != icot.curriculum for other in others)
    changed = read_config(path, FinetuneConfig, ["curriculum.num_stages=2", "method.name=icot"])
    assert changed.curriculum == icot.curriculum.model_copy(update={"num_stages": 2})


def test_icot_without_a_curriculum_of_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("data: {train: {path: a.json}, validation: {path: a.json}}\ncheckpoint: {init_from: runs/x}\n")
    assert read_config(path, FinetuneConfig).curriculum == CurriculumSection()
    with pytest.raises(
        ValueError, match=r"method\.name=icot removes tokens, not steps: set curriculum\.tokens_per_stage"
    ):
        read_config(path, FinetuneConfig, ["method.name=icot"])
    read_config(path, FinetuneConfig, ["method.name=icot", "curriculum.tokens_per_stage=8"])


def tokenizer_of(config: FinetuneConfig) -> Tokenizer:
    """Of a model from scratch, or that of the sweep whose runs it starts from."""
    if config.data.tokenizer is not None:
        return Tokenizer.load(config.data.tokenizer)
    sweep = ROOT / "configs" / "sweeps" / f"{Path(config.checkpoint.init_from or '').parent.name}.yaml"
    first = ROOT / read_config(sweep, SweepConfig).config
    if first.parent.name == "finetune":
        return tokenizer_of(read_config(first, FinetuneConfig))
    return Tokenizer.load(read_config(first, RunConfig).data.tokenizer)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.run_name)
def test_examples_fit_tokenizer_length_and_answer(case: Case) -> None:
    config = read_config(case.path, FinetuneConfig, case.overrides)
    tokenizer = tokenizer_of(config)
    section = config.data.train.model_copy(update={"num_examples": 100})
    examples, form = load_examples(section, "train", 0)
    maker = RowMaker(config.chosen_method, config.curriculum, config.method.markers_in_first_stage, tokenizer)
    assert config.train.seq_len is not None
    for example in encode_examples(examples, form, tokenizer, "data.train"):
        for stage in range(config.curriculum.last_stage + 1):
            length = len(example.steps) if config.chosen_method.removal == "step" else sum(map(len, example.steps))
            row = maker.row(example, cut_at(config.curriculum, config.chosen_method, stage, length))
            assert len(row.tokens) <= config.train.seq_len
            text = len(example.answer) + sum(map(len, example.steps))
            assert len(row.tokens) - row.first_target <= text <= config.validation.max_new_tokens


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.nam=cot"], "command line: method.nam: unknown key, did you mean method.name?"),
        (["method.name=coco"], "method.name: needs one of coconut, cot, no_cot"),
        (
            ["method.name=cot", "method.stop=classifier"],
            "method.stop=classifier is for methods with thoughts (coconut, without_curriculum, codi, sim_cot), not for "
            "cot",
        ),
        (["method.name=pause", "method.jacobi_passes=1"], "method.jacobi_passes is for methods with thoughts"),
        (["method.name=lotus", "method.stop=classifier"], "method.stop=classifier is for methods with thoughts"),
        (
            ["method.name=sim_cot", "method.distillation_weight=1"],
            "sim_cot adds another term to the loss; leave it out",
        ),
        (["method.step_weight=2"], "method.step_weight: has no effect with method.name=coconut; remove it"),
        (["method.name=codi", "curriculum.thoughts_per_step=0"], "method.name=codi needs thoughts: set curriculum."),
        (["train.effective_batch=8"], "train.effective_batch=8 is smaller than train.micro_batch=32"),
        (["checkpoint.init_from=runs/x"], "model: its shape comes from checkpoint.init_from"),
        (["--init", "runs/x", "checkpoint.init_from=runs/y"], "--init and checkpoint.init_from= say the same"),
        (["data.train.path=a.json"], "examples come from a path or from a task, not from both"),
        (["data.train.num_examples=null"], "examples of task prosqa_symbolic are unlimited: set num_examples"),
        (["data.validation.task=null"], "data.train and data.validation: each needs a path or a task"),
        (["data.tokenizer=null"], "a model from scratch needs data.tokenizer and train.seq_len"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        COMMAND_LINE.parse(["--config", str(SMALL), *overrides])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.tokenizer=nowhere.model"], "nowhere.model: no such tokenizer file"),
        (["data.tokenizer=symbols:abc", "model.vocab_size=8"], "has 10 tokens, more than model.vocab_size=8"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_by_the_dry_run(overrides: list[str], message: str) -> None:
    command = COMMAND_LINE.parse(["--config", str(SMALL), "--dry-run", *overrides])
    with pytest.raises(ValueError) as caught:
        plan_rows(command.config, 1)
    assert message in str(caught.value)


def test_without_a_file_the_configuration_for_any_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with and without a GPU, so that a dry run on a login node plans what the job does."""
    monkeypatch.chdir(ROOT)
    command = COMMAND_LINE.parse(["--dry-run"])
    assert (command.config.run.name, command.config.checkpoint.init_from) == ("prosqa_coconut_small", None)


def test_the_entry_answers_quickly_and_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "finetune" / "coconut.py"), "--config", "nowhere.yaml", "--local_rank=0"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: nowhere.yaml: No such file or directory\n")


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepspeed.py").write_text("raise ModuleNotFoundError(name='deepspeed')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    command = [sys.executable, "finetune/coconut.py", f"run.root={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    line = "error: deepspeed is not installed: bash tools/setup.sh finetune\n"
    first, *others = ended.stderr.splitlines(keepends=True)
    assert (ended.returncode, first.endswith(": 1 rank, loading\n"), others) == (2, True, [line])


def test_the_help_page_has_every_key() -> None:
    text = COMMAND_LINE.help_text(100)
    for key in (
        "method.name=coconut",
        "curriculum.thoughts_per_step=1",
        "engine.zero_stage=2",
        "optimizer.reset=stage",
    ):
        assert key in text
    assert max(map(len, text.splitlines())) < 100


def test_a_run_that_never_reaches_its_last_stage_is_refused_if_it_has_a_test() -> None:
    early = read_config(SMALL, FinetuneConfig, ["train.epochs=4"])
    with pytest.raises(ValueError, match=r"train\.epochs=4 ends in stage 1, before the last one, 4: no weights will"):
        plan_rows(early, 1)
    assert len(require_last_stage(early, has_begun=True)) == 1
    assert read_config(SMALL, FinetuneConfig, ["train.epochs=4", "method.name=cot"]).reaches_last_stage
    without = read_config(SMALL, FinetuneConfig, ["train.epochs=4", "data.test={task: null, num_examples: null}"])
    assert len(require_last_stage(without)) == 1
