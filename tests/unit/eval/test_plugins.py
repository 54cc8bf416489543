"""What users bring from outside the package: a task in Python, tasks in the harness's format; trained on, scored, and
refused in one line where something is wrong."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.schema.plugin import load_plugin
from pretrain.tasks.registry import make_task, task_class
from pretrain.tasks.task import Task
from tests.support.commands import Commands
from tests.support.extending import EXTENDING, forget, write_examples

ROOT = Path(__file__).parents[3]
CONFIG = """
run: {name: parity}
model: {vocab_size: 10, hidden_size: 16, num_attention_heads: 2, ffn_size: 16, num_loop_layers: 1, num_loops: 2}
data:
  tokenizer: "symbols:01="
  sources: [{task: "my_tasks:Parity", parameters: {length: 6}}]
train: {steps: 2, seq_len: 16, global_batch: 4, micro_batch: 4, precision: fp32}
optimizer: {warmup_steps: 0}
validation: {every: 0, tasks_every: 2, tasks: ["my_tasks:Parity", my_bits], num_examples: 4, include_path: bits}
logging: {wandb: disabled}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Outside the package, with the files of the document, and started in."""
    write_examples(tmp_path)
    rows = [{"bits": f"{number:04b}", "parity": f"{number:b}".count("1") % 2} for number in range(16)]
    (tmp_path / "bits" / "bits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    task_class.cache_clear()
    forget(tmp_path)


def test_a_task_of_a_users_file_and_one_in_yaml_are_trained_on_and_scored(folder: Path, commands: Commands) -> None:
    """In the loader's workers, while training, and afterwards from the checkpoint alone."""
    done = commands.run("-m", "pretrain.train", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "runs/parity/eval/depth.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"my_tasks:Parity", "my_bits"}
    evaluate = (str(ROOT / "tools/eval_depth.py"), "--run", "runs/parity", "--num-loops", "1,2", "--offline")
    scored = commands.run(
        *evaluate, "--tasks", "my_bits,my_tasks:Parity", "--include-path", "bits", "--num-examples", "8"
    )
    assert scored.returncode == 0, scored.stderr
    # of 64 questions four are in the test split, and at two loops they were scored while it trained
    assert "best shortcut: " in scored.stdout and (scored.stdout.count("(8)"), scored.stdout.count("(4)")) == (2, 1)
    wrong = commands.run(*evaluate, "--tasks", "my_bit", "--include-path", "bits")
    assert (wrong.returncode, wrong.stderr) == (2, "error: task my_bit: no such task or group, did you mean my_bits?\n")
    (folder / "bits" / "bits.jsonl").unlink()
    gone = commands.run(*evaluate, "--tasks", "my_bits", "--include-path", "bits", "--num-examples", "3")
    assert gone.returncode == 1 and "skipped my_bits: FileNotFoundError" in gone.stderr
    assert gone.stderr.splitlines()[-1] == "error: not evaluated: my_bits; the reasons are above"


COMMANDS = [line.strip() for line in EXTENDING.read_text().splitlines() if line.startswith("    python -m pretrain.")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_is_planned_as_it_stands(folder: Path, command: str, commands: Commands) -> None:
    done = commands.run(*shlex.split(command)[1:], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"my_\w+:[A-Z]\w+", command)[0] in done.stdout  # type: ignore[index]


def test_a_users_task_is_drawn_by_its_own_parameters(folder: Path) -> None:
    task = make_task("my_tasks:Parity", {"length": 5})
    assert isinstance(task, Task) and len(task.generate(0, 0).question) == 5
    with pytest.raises(ValueError, match="no parameter lenght, did you mean length"):
        make_task("my_tasks:Parity", {"lenght": 5})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none_such:Parity", "", "there is no module none_such, neither in .* nor among what is installed"),
        ("bad:Parit", "class Parity: ...", r"bad\.py has no Parit, did you mean Parity\?"),
        ("bad:Parity", "class Parity: ...", r"task=bad:Parity: is no subclass of pretrain\.tasks\.task\.Task"),
        ("bad:x y", "", "a name from outside is written module:attribute"),
        ("bad:Parity", "import none_such_at_all", r"bad\.py, line 1: ModuleNotFoundError: No module named"),
        ("bad:Parity", "\n\n1 / 0", r"bad\.py, line 3: ZeroDivisionError: division by zero"),
        ("bad:Parity", "def x(:", r"bad\.py, line 1: SyntaxError: invalid syntax"),
        (
            "bad:Parity",
            "from pretrain.tasks.task import Task\nclass Parity(Task):\n  def make(self, random): ...",
            "task=bad:Parity: lacks longest, solve, name, parameters_type",
        ),
    ],
)
def test_what_is_wrong_with_a_name_from_outside_is_one_line(folder: Path, name: str, text: str, message: str) -> None:
    (folder / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        task_class(name)
    assert "\n" not in str(caught.value)


def test_a_file_of_the_user_hides_no_library(folder: Path) -> None:
    (folder / "json.py").write_text("raise RuntimeError('not this one')")
    assert load_plugin("json:dumps", "task") is json.dumps
