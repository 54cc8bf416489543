"""Numbers and lists on a command line: what is read, and the line that people get when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.command.console import describe_error
from tools import convert_checkpoint, eval_coconut, eval_depth

COMMANDS = {"eval_depth": eval_depth.parse, "eval_coconut": eval_coconut.parse}
every_command = pytest.mark.parametrize("command", COMMANDS)


@every_command
def test_lists_and_numbers_are_read(command: str) -> None:
    read = COMMANDS[command](["--run", "runs/x", "--num-loops", "4,1,4", "--step", "0", "--num-examples", "3"])
    assert (read.num_loops, read.step, read.num_examples) == ([4, 1], 0, 3)


def test_names_stand_between_commas() -> None:
    assert eval_depth.parse(["--run", "runs/x", "--tasks", "p_hop,,addition"]).tasks == ["p_hop", "addition"]
    assert eval_coconut.parse(["--run", "runs/x", "--latents", "0,2"]).latents == [0, 2]


@every_command
@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--num-examples", "0", "needs at least 1, got 0"),
        ("--batch", "-3", "needs at least 1, got -3"),
        ("--batch", "two", "needs a whole number, got two"),
        ("--step", "-1", "needs at least 0, got -1"),
        ("--num-loops", "1,x", "needs whole numbers such as 1,2,4, got 1,x"),
        ("--num-loops", "", "needs whole numbers such as 1,2,4, got "),
        ("--num-loops", "2,0", "needs numbers of at least 1, got 2,0"),
    ],
)
def test_what_is_no_number_or_too_small_is_named(
    command: str, option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        COMMANDS[command](["--run", "runs/x", f"{option}={text}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {option}: {message}; --help lists the options\n"


def test_numbers_of_the_loop_command_are_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["loop", "--run", "runs/x", "--out", "runs/y", "--num-loop-layers", "2", "--merge", "-1"]
    with pytest.raises(SystemExit):
        convert_checkpoint.parse(arguments)
    assert (
        "error: --merge: '-1' is none of average, first, middle, last, none, nor the number of a block"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("module", "extra"),
    [("lm_eval.tasks", " eval"), ("deepspeed", " finetune"), ("plotly", " plot"), ("pandas", " notebook"), ("x", "")],
)
def test_the_command_that_installs_what_is_missing_is_named(module: str, extra: str) -> None:
    said = describe_error(ModuleNotFoundError(name=module))
    assert said == f"{module} is not installed: bash tools/setup.sh{extra}"
    assert describe_error(ImportError("in other words")) == "in other words"


@pytest.mark.parametrize(("rank", "who"), [(0, ""), (1, "rank 1: ")])
def test_bad_input_that_one_rank_alone_finds_is_told_by_it(tmp_path: Path, rank: int, who: str) -> None:
    """A file that its machine does not see; here no other rank ends, and so none ends this one."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.train", "--config", tmp_path / "none.yaml"],
        env={**os.environ, **place}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"error: {who}{tmp_path}/none.yaml: No such file or directory\n")


WRONG_PATHS = """
import contextlib, io, importlib, shlex, sys
sys.modules["torch"] = None  # an import of it fails, in words of its own
PRETRAIN, FINETUNE, FROM_A_RUN = sys.argv[1:]
for name, arguments, message in (
    ("tools.convert_checkpoint", "import --model none --run made", "none: no config.json in it"),
    ("tools.convert_checkpoint", "import --model none.gguf --run made", "none.gguf: No such file or directory"),
    ("tools.convert_checkpoint", "import --model none --run here", "here exists: name a new run directory"),
    ("tools.convert_checkpoint", "export --run none --out made", "none: no checkpoints there"),
    ("tools.convert_checkpoint", "export --run none --out here", "here exists: name a new folder"),
    ("tools.convert_checkpoint", "loop --run none --out made --num-loop-layers 2", "none: no checkpoints there"),
    ("tools.generate", "--run none --prompt a", "none: no checkpoints there"),
    ("tools.generate", "--run run --step 3 --prompt a", "no checkpoint of step 3; there are step-00000002"),
    ("tools.eval_depth", "--run none", "none: no checkpoints there"),
    ("tools.eval_depth", "--run run --data-dir none", "--data-dir none: no such folder"),
    ("tools.eval_coconut", "--run none", "none: no checkpoints there"),
    ("tools.latent_search", "--run none", "none: no checkpoints there"),
    ("tools.block_similarity", "run none", "none: no checkpoints there"),
    ("pretrain.train", PRETRAIN + "data.tokenizer=none.model", "none.model: no such tokenizer file; make one with"),
    ("pretrain.train", PRETRAIN + "data.tokenizer=symbols:ab 'data.sources=[{path: none}]'", "none: no manifest.jsonl"),
    ("finetune.coconut", FINETUNE + "data.tokenizer=none.model", "none.model: no such tokenizer file; make one with"),
    ("finetune.coconut", FROM_A_RUN + "--init none", "none: no checkpoints there"),
    ("finetune.coconut", FROM_A_RUN + "--init none --dry-run", "none: no checkpoints there"),
):
    tool, said = importlib.import_module(name), io.StringIO()
    sys.argv = [name, *shlex.split(arguments)]
    with contextlib.redirect_stderr(said):
        code = tool.main() if name == "tools.generate" else tool.main(sys.argv[1:])
    assert code == 2 and message in said.getvalue(), (name, arguments, said.getvalue())
"""


def test_wrong_paths_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    files = ("tasks/p_hop_small", "finetune/prosqa_small", "finetune/gsm8k_12x2")
    configurations = [f"--config {Path.cwd()}/configs/{file}.yaml " for file in files]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", WRONG_PATHS, *configurations]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
