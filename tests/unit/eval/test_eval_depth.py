"""Evaluating a run: the same prompts at every loop count, rows that are written once, and the command."""

import gzip
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pretrain import train
from pretrain.checkpoint.counters import Counters
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.symbols import SymbolTokenizer, write_symbols
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.eval.evaluate import evaluate
from pretrain.eval.groups import ResolvedTask, tasks_of
from pretrain.eval.harness import LoopedLM
from pretrain.eval.loading import load_tasks
from pretrain.generation.sampling import Generation
from pretrain.rows.evaluation import ScoredModel
from pretrain.rows.identity import parse_inputs, variant_of
from pretrain.rows.jsonl import JsonLines
from pretrain.tasks.registry import make_task
from pretrain.tasks.shortcuts import floor_of
from pretrain.tasks.task import Example
from tests.support.corpus import make_tokenizer
from tests.support.example_files import write_examples
from tests.unit.hf.test_convert import make_run
from tools import eval_depth, scaling_plot

ROOT = Path(__file__).parents[3]
LETTERS = SymbolTokenizer(write_symbols([chr(code) for code in range(32, 127)] + ["\n"]))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets these for its own process."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE", "DISABLE_MULTIPROC"):
        monkeypatch.setenv(name, "1")


class Listener:
    """In place of a scorer: notes the prompts of each loop count, and answers nothing."""

    def __init__(self) -> None:
        self.prompts: dict[int | None, list[list[int]]] = {}

    def continuations(self, prompts: list[list[int]], settings: Generation, _: Any) -> list[list[int]]:
        self.prompts.setdefault(settings.num_loops, []).extend(prompts)
        return [[] for _ in prompts]


def listen(
    tokenizer: Tokenizer, config: RunConfig, *names: str, num_examples: int, file: Path | JsonLines, max_length: int
) -> Listener:
    """Evaluate on a task at one and two loops."""
    listener = Listener()
    lm = LoopedLM(listener, tokenizer, (1, 2), max_length=max_length)  # type: ignore[arg-type]
    saved = SavedModel.of(config)
    tasks = [found for found in tasks_of(saved, names, None, allow_network=False) if isinstance(found, ResolvedTask)]
    loader = partial(load_tasks, data_dir=None, num_examples=num_examples)
    subject = ScoredModel(saved=saved, counters=Counters(step=1))
    rows_file = file if isinstance(file, JsonLines) else JsonLines(file)
    for _, rows in evaluate(lm, subject, tasks, loader, num_examples=num_examples, file=rows_file):
        rows_file.append(rows)
    return listener


def test_every_loop_count_and_every_call_sees_the_same_prompts(tmp_path: Path) -> None:
    ask = partial(listen, LETTERS, RunConfig(), "variable_assignment_math_depth0", num_examples=4, max_length=2000)
    prompts = ask(file=tmp_path / "first.jsonl").prompts
    assert prompts[1] == prompts[2] and len({tuple(prompt) for prompt in prompts[1]}) == 4
    assert LETTERS.decode(prompts[1][0]).count("\n\n") == 5  # shots
    assert ask(file=tmp_path / "second.jsonl").prompts == prompts


def test_a_task_is_done_when_it_was_scored_on_as_many_examples(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    ask = partial(listen, LETTERS, RunConfig(), "variable_assignment_math_depth0", max_length=2000, file=file)
    assert [bool(ask(num_examples=count).prompts) for count in (3, 3, 5, 3)] == [True, False, True, False]
    assert len(file.read_text().splitlines()) == 4


def test_a_task_of_other_inputs_is_not_done(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Each call differs from the one before in its data, in bos, in the weights; the fourth repeats the third."""
    file, data = tmp_path / "rows.jsonl", [tmp_path / name / "lambada" for name in ("a", "b")]
    for folder, word in zip(data, ("loop", "river"), strict=True):
        folder.mkdir(parents=True)
        rows = [{"context": f"the old {word} runs", "continuation": f" again {number}"} for number in range(2)]
        (folder / "lambada_openai.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [make_run(tmp_path / str(seed) / "run", tokenizer, {"num_loop_layers": 1}, seed=seed) for seed in (0, 1)]
    calls = [(0, 0, []), (0, 1, []), (0, 1, ["--no-bos"]), (0, 1, ["--no-bos"]), (0, 0, []), (1, 0, [])]
    counts = []
    for run, folder, more in calls:
        wanted = ["--run", str(runs[run]), "--tasks", "lambada_openai", "--data-dir", str(data[folder].parent)]
        assert eval_depth.main([*wanted, "--out", str(file), *more]) == 0
        counts.append(len(file.read_text().splitlines()))
    assert counts == [2, 4, 6, 6, 8, 10]
    said = capsys.readouterr().err
    assert f"{file}: lambada_openai: " in said
    assert "rows of this step differ in examples" in said and "differ in bos: they do not count" in said
    old = [json.loads(line) | {"inputs": None} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in old[:2]))
    assert eval_depth.main([*wanted, "--out", str(file)]) == 0
    assert len(file.read_text().splitlines()) == 4, "of rows from before inputs were kept nobody knows"


def test_a_write_that_was_cut_short_loses_no_row_and_doubles_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    names = [f"variable_assignment_math_depth{depth}" for depth in (0, 1)]
    ask = partial(listen, LETTERS, RunConfig(), *names, num_examples=2, max_length=2000, file=file)
    ask()
    whole = file.read_bytes()
    lines = whole.splitlines()
    assert [(json.loads(line)["task"], json.loads(line)["num_loops"]) for line in lines] == [
        (name, loops) for name in names for loops in (1, 2)
    ]
    last = len(whole) - len(lines[-1])
    for offset in (
        0,
        1,
        len(lines[0]),
        len(lines[0]) + 1,
        last - 3,
        last - 2,
        last - 1,
        last,
        last + 9,
        len(whole) - 1,
    ):
        file.write_bytes(whole[:offset])
        asked = ask().prompts
        assert (offset, sorted(file.read_bytes().splitlines())) == (offset, sorted(lines))
        assert bool(asked) == (offset < len(whole) - 1)


def test_a_prompt_that_fits_with_its_answer_is_not_cut(tmp_path: Path) -> None:
    source = {"task": "addition", "parameters": {"num_operands": [3], "num_digits": 2}}
    config = RunConfig.model_validate({"data": {"tokenizer": "symbols:0123456789+=", "sources": [source]}})
    digits = Tokenizer.load(config.data.tokenizer)
    # begin, three numbers of two digits, two signs and = are ten tokens; three digits and the end follow, the end being
    # no input
    prompts = listen(digits, config, num_examples=50, max_length=13, file=tmp_path / "rows.jsonl").prompts[1]
    assert all(prompt[0] == digits.bos_id and len(prompt) == 10 for prompt in prompts)


def test_texts_that_do_not_fit_the_model_are_counted(tmp_path: Path) -> None:
    """They lose their beginnings, as the harness has its own adapter cut them: a score of them is no score of the
    task."""
    digits = Tokenizer.load("symbols:0123456789+=")
    config = RunConfig.model_validate({"data": {"tokenizer": "symbols:0123456789+="}})
    names = [f"addition:num_digits=2:num_operands=[{operands}]" for operands in (3, 4)]
    file = JsonLines(tmp_path / "rows.jsonl")
    listen(digits, config, *names, num_examples=5, max_length=13, file=file)
    assert file.problems == [
        f"{names[1]}: 5 texts of up to 13 tokens lost their beginnings: the model was trained on 13"
    ]
    assert listen(digits, config, *names, num_examples=5, max_length=17, file=JsonLines(tmp_path / "more.jsonl"))


def test_a_name_means_the_difficulty_that_the_run_is_trained_at() -> None:
    sources = [{"task": "p_hop", "parameters": {"num_hops": hops}} for hops in (2, 3)]
    saved = SavedModel.of(RunConfig.model_validate({"data": {"sources": sources}}))
    for names in ([], ["p_hop", "p_hop_2"]):
        found = [task for task in tasks_of(saved, names, None) if isinstance(task, ResolvedTask)]
        assert [(task.name, task.parameters) for task in found] == [
            ("p_hop", {"num_hops": 2}),
            ("p_hop_2", {"num_hops": 3}),
        ]
    (other,) = tasks_of(saved, ["induction_copying"], None, allow_network=False)
    assert isinstance(other, ResolvedTask) and other.parameters == {}


def test_parameters_behind_a_name_ask_another_difficulty_of_the_task(tmp_path: Path) -> None:
    source = {"task": "p_hop", "parameters": {"num_hops": 2, "length": 24}, "supervise": "prefixes"}
    saved = SavedModel.of(RunConfig.model_validate({"data": {"sources": [source]}}))
    write_examples(tmp_path / "p_hop.json", [Example("abab", (), "a")])  # of the run's own difficulty
    names = ["p_hop:num_hops=3", "p_hop", "p_hop:num_hops=4:length=32", "p_hop:num_hops=3", "addition:num_operands=[4]"]
    found = [task for task in tasks_of(saved, names, tmp_path) if isinstance(task, ResolvedTask)]
    assert [(task.name, task.harness_name, task.file is None, task.parameters) for task in found] == [
        ("p_hop:num_hops=3", "p_hop:num_hops=3", True, {"num_hops": 3, "length": 24}),
        ("p_hop", "p_hop", False, {"num_hops": 2, "length": 24}),
        ("p_hop:num_hops=4:length=32", "p_hop:num_hops=4:length=32", True, {"num_hops": 4, "length": 32}),
        ("addition:num_operands=[4]", "addition:num_operands=[4]", True, {"num_operands": [4]}),
    ]
    assert [task.supervise for task in found] == ["prefixes", "prefixes", "prefixes", "answer"]
    assert all(task.group == task.name for task in found), "each is a number of its own"
    (plugin,) = tasks_of(saved, ["pretrain.tasks.p_hop:PHop:length=70"], None)  # whose own name has a colon
    assert isinstance(plugin, ResolvedTask)
    assert (plugin.generator, plugin.parameters) == ("pretrain.tasks.p_hop:PHop", {"length": 70})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p_hop:num_hop=3", "task p_hop: no parameter num_hop, did you mean num_hops?"),
        ("p_hop:num_hops=many", "task p_hop: num_hops: Input should be a valid integer"),
        ("p_hop:num_hops=200", "task p_hop: length=256 is too short for num_hops=200"),
        ("p_hop:num_hops=[3", "task p_hop:num_hops=[3: a value is no YAML; parameters are written p_hop:num_hops=4:"),
        ("p_hop:num_hops", "task p_hop:num_hops: parameters are written p_hop:num_hops=4:length=48"),
        ("p_hop:", "task p_hop:: parameters are written p_hop:num_hops=4:length=48"),
        ("p_hops:num_hops=3", "task p_hops: no such task or group, did you mean p_hop?"),
        ("lambada_openai:num_hops=3", "task lambada_openai:num_hops=3: only a generated task has parameters (addition"),
        ("closed_book:num_hops=3", "task closed_book:num_hops=3: only a generated task has parameters"),
    ],
)
def test_a_difficulty_that_cannot_be_asked_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tasks_of(SavedModel.of(RunConfig()), [name], None, allow_network=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    make_tokenizer(path)
    return path


def test_the_command_writes_rows_once_and_names_what_is_wrong(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    run = make_run(tmp_path / "run", tokenizer, {"num_loop_layers": 2})
    wanted = ["--run", str(run), "--num-examples", "3", "--offline", "--num-loops", "1,2"]
    assert eval_depth.main([*wanted, "--tasks", "variable_assignment_code_depth0,svamp"]) == 0
    assert "skipped svamp: its files are read from a data directory, and none was given" in capsys.readouterr().err
    file = run / "eval" / "depth.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [
        (row["task"], row["task_group"], row["metric"], row["num_loops"], row["effective_depth"]) for row in rows
    ] == [("variable_assignment_code_depth0", "primitives", "exact_match", loops, 2 * loops) for loops in (1, 2)]
    assert all(row["num_examples"] == 3 and row["run"] == "run" and row["stderr"] is not None for row in rows)
    assert eval_depth.main([*wanted, "--tasks", "primitives"]) == 0
    printed = capsys.readouterr()
    assert "has variable_assignment_code_depth0 already" in printed.err
    assert re.search(
        r"code_depth1 \(primitives; generated; best shortcut: [a-z ]+, 2\d\.\d %; chance \d\.\d %\)", printed.out
    )
    assert "3 tasks evaluated, 1 already done, 0 skipped" in printed.out
    assert len(file.read_text().splitlines()) == 2 * 4
    for arguments, message in (
        (["--run", str(run), "--tasks", "svam"], "error: task svam: no such task or group, did you mean svamp?"),
        (["--run", str(tmp_path / "absent")], "no checkpoints there"),
        (["--run", str(run)], "error: run run is trained on no task: name some to evaluate it on"),
    ):
        assert eval_depth.main([*arguments, "--offline"]) == 2
        assert message in capsys.readouterr().err


def test_what_nobody_counted_is_null_and_can_be_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fine-tuned run from before tokens and FLOPs of fine-tuning were counted."""
    run = tmp_path / "finetuned"
    shutil.copytree(ROOT / "tests" / "golden" / "finetuned", run)
    wanted = ["--tasks", "prosqa_symbolic", "--num-examples", "2", "--offline", "--num-loops", "1,2"]
    assert eval_depth.main(["--run", str(run), *wanted]) == 0
    file = run / "eval" / "depth.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 2 and all((row["tokens_seen"], row["train_flops"]) == (None, None) for row in rows)
    assert all(row["step"] == 4 and row["run"] == "finetuned" and row["family"] == "looped" for row in rows)
    capsys.readouterr()
    assert scaling_plot.main([str(file), "--out", str(tmp_path)]) == 0
    assert "training FLOPs of 2 of 2 points are unknown or 0" in capsys.readouterr().out


def test_a_file_of_questions_wins_over_their_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = tmp_path / "finetuned", tmp_path / "data"
    shutil.copytree(ROOT / "tests" / "golden" / "finetuned", run)
    questions = [make_task("prosqa_symbolic", {"num_nodes": 9}).generate(5, number) for number in range(3)]
    (data / "prosqa_symbolic").mkdir(parents=True)
    file = data / "prosqa_symbolic" / "prosqa_symbolic_test.json.gz"
    write_examples(file, questions)
    wanted = ["--run", str(run), "--tasks", "prosqa_symbolic", "--num-examples", "4", "--offline"]
    assert eval_depth.main([*wanted, "--data-dir", str(data)]) == 0
    printed = capsys.readouterr().out
    assert f"prosqa_symbolic (prosqa_symbolic; {file})\n" in printed
    rows = [json.loads(line) for line in (run / "eval" / "depth.jsonl").read_text().splitlines()]
    assert [(row["task"], row["num_examples"], row["chance"]) for row in rows] == [("prosqa_symbolic", 3, None)]
    (task,) = tasks_of(SavedModel.of(RunConfig()), ["prosqa_symbolic"], data)
    assert isinstance(task, ResolvedTask)
    (asked,) = load_tasks(task, data)
    assert asked.eval_docs["question"][:] == [example.question for example in questions]
    assert eval_depth.main(wanted) == 0  # made questions are other inputs
    assert "prosqa_symbolic (prosqa_symbolic; generated;" in capsys.readouterr().out
    file.write_bytes(gzip.compress(b"[]"))
    assert eval_depth.main([*wanted, "--data-dir", str(data)]) == 2
    assert f"error: {file}: holds no examples\n" in capsys.readouterr().err


def test_a_file_of_questions_is_for_the_task_of_its_name(tmp_path: Path) -> None:
    """Also among the tasks that a run was trained on, whose second difficulty has a name of its own."""
    write_examples(tmp_path / "p_hop_2.json", [Example("abab", (), "a")])
    sources = [{"task": "p_hop", "parameters": {"num_hops": hops}} for hops in (2, 3)]
    saved = SavedModel.of(RunConfig.model_validate({"data": {"sources": sources}}))
    found = [task for task in tasks_of(saved, [], tmp_path) if isinstance(task, ResolvedTask)]
    assert [(task.source, task.file) for task in found] == [
        ("generator", None), ("files", tmp_path / "p_hop_2.json")
    ]  # fmt: skip


def test_the_task_of_a_run_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hops = {"task": "p_hop", "parameters": {"num_hops": 2, "length": 12}, "supervise": "prefixes"}
    data = {"tokenizer": "symbols:abcd", "sources": [hops]}
    overrides = [
        "run.name=hops",
        f"run.root={tmp_path}",
        "train.seq_len=13",
        f"data={json.dumps(data)}",
        "logging.wandb=disabled",
    ]
    shape = [
        "model.vocab_size=16",
        "model.hidden_size=16",
        "model.num_attention_heads=2",
        "model.ffn_size=16",
        "model.num_loop_layers=1",
    ]
    settings = [
        "train.steps=2",
        "train.global_batch=4",
        "train.micro_batch=4",
        "optimizer.warmup_steps=0",
        "validation.every=0",
    ]
    (tmp_path / "run.yaml").write_text("train: {precision: fp32}\n")
    assert train.main(["--config", str(tmp_path / "run.yaml"), *overrides, *shape, *settings]) == 0
    assert eval_depth.main(["--run", str(tmp_path / "hops"), "--num-loops", "1,2", "--num-examples", "20"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "hops" / "eval" / "depth.jsonl").read_text().splitlines()]
    assert [(row["task"], row["metric"], row["num_loops"]) for row in rows] == [
        ("p_hop", "acc", 1),
        ("p_hop", "acc", 2),
    ]
    assert {row["num_examples"] for row in rows} == {20}
    capsys.readouterr()
    auto = ["--run", str(tmp_path / "hops"), "--num-examples", "20", "--num-loops"]
    assert eval_depth.main([*auto, "auto:change:0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = f"acc {rows[0]['value']:.4f} (20), 1.00 loops a token, "
    assert [line.partition(shown)[0] for line in lines[1:]] == ["  auto:change:0.1: ", "  1 loops: "]
    assert eval_depth.main([*auto, "auto:gate"]) == 2
    assert "the model has no gate" in capsys.readouterr().err
    assert len((tmp_path / "hops" / "eval" / "depth.jsonl").read_text().splitlines()) == 2
    config = read_config(tmp_path / "run.yaml", RunConfig, [*overrides, *shape, *settings])
    steps = [json.loads(line) for line in (tmp_path / "hops" / "metrics.jsonl").read_text().splitlines()]
    whose = {(row["run_id"], row["config"]) for row in rows}
    assert {(row["run_id"], row["config"]) for row in steps} == whose and len(whose) == 1
    for row in rows:
        assert row["variant"] == variant_of(config) and row["settings"]["train.steps"] == 2 and row["seed"] == 0
        assert len(row["run_id"]) == 16 and row["trained_loops"] == [1, 1] and row["is_main"] is True
        assert (row["num_prelude_layers"], row["num_loop_layers"], row["num_coda_layers"]) == (0, 1, 0)
        names = ["examples", "shots", "tokenizer", "checkpoint", "harness", "bos"]
        assert list(parse_inputs(row["inputs"])) == names and row["data"]
        assert (row["shortcut"], row["chance"]) == floor_of("p_hop", hops["parameters"])
