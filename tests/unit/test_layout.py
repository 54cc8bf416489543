"""The rules that hold for every file: who imports whom, size, names that shadow nothing, scripts that parse, and what
the README names."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from finetune import coconut, grpo
from finetune.config import FinetuneConfig
from finetune.config import check_layout as check_finetuning
from finetune.reinforce.config import GrpoConfig
from finetune.reinforce.config import check_layout as check_rewarding
from pretrain import launch, train, verify
from pretrain.config.layout import check_layout
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepConfig, cells
from pretrain.plan import __main__ as plan
from pretrain.serve import __main__ as serve
from tests.support.commands import Commands
from tools import sweep

ROOT = Path(__file__).parents[2]
PYTHON_FILES = sorted(
    path for folder in ("pretrain", "finetune", "tools", "tests") for path in (ROOT / folder).rglob("*.py")
)
SHELL_FILES = [*sorted((ROOT / "tools").glob("*.sh")), *sorted((ROOT / "slurm").glob("*.sh")), ROOT / ".ci/run"]
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
TRAVELS_ALONE = ROOT / "pretrain/hf/modeling_looped_gpt.py"
"""A copy of it lies beside exported weights, so it imports nothing of the project and cannot be cut."""


@cache
def syntax_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", "pyproject.toml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES or path == TRAVELS_ALONE
    assert path.name == "__init__.py" or ast.get_docstring(syntax_of(path)), "no module docstring"


@pytest.mark.parametrize("folder", ["tools", "tools/benchmarks", "finetune"])
def test_scripts_shadow_no_library(folder: str) -> None:
    """`python tools/x.py` puts tools/ first on the path: a tools/profile.py, or a folder of that name, would take the
    library's place."""
    libraries = set(sys.stdlib_module_names) | set(packages_distributions())
    names = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()} - {"__init__"}
    assert not names & libraries


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_imports_are_absolute_and_tools_are_scripts(path: Path) -> None:
    for node in ast.walk(syntax_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
        if path.is_relative_to(ROOT / "pretrain") or path.is_relative_to(ROOT / "finetune"):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"tools", "tests"}, f"line {node.lineno}"


def test_functions_are_short_and_no_two_classes_share_a_name() -> None:
    """A name stands for one thing in the whole product; the file that travels alone repeats the model's."""
    classes: dict[str, Path] = {}
    for path in PYTHON_FILES:
        if path == TRAVELS_ALONE or path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(syntax_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or 0) - node.lineno + 1
                assert num_lines <= MAX_FUNCTION_LINES, f"{name_of(path)}: {node.name} has {num_lines} lines"
            elif isinstance(node, ast.ClassDef):
                assert node.name not in classes, f"{node.name}: {name_of(path)} and {name_of(classes[node.name])}"
                classes[node.name] = path


@pytest.mark.parametrize("path", SHELL_FILES, ids=name_of)
def test_shell_scripts_parse_and_stop_at_errors(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.startswith("#!/usr/bin/env bash\n")
    assert "\nset -e" in source
    result = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_top_level_is_the_designed_one() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    names = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    assert names <= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "pretrain",
        "finetune",
        "configs",
        "slurm",
        "tools",
        "tests",
    }


def test_every_dependency_says_why() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    for requirement in project["dependencies"] + [
        item for extra in project["optional-dependencies"].values() for item in extra
    ]:
        (line, *_) = [line for line in text.splitlines() if line.strip().startswith(f'"{requirement}"')]
        assert "# " in line, f"{requirement}: no reason given"


FOLDERS = (".", "pretrain", "finetune", "configs", "slurm", "tools", "tools/benchmarks", "tests")
DOCUMENTS = [*(ROOT / name / "README.md" for name in FOLDERS), ROOT / "pretrain" / "EXTENDING.md"]
"""What users read: README.md, and where it sends them."""


MAX_README_LINES = 150


def test_the_first_page_stays_one() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


IN_TEXT = re.compile(r"`((?:python |bash |sbatch |tools/\w+\.py |finetune/\w+\.py |-m pretrain\.)[^`]+)`")
"""A command in a sentence or a table; those of tables leave out the word python."""


def readme_commands() -> list[str]:
    """The command lines of the documents, each once."""
    starts = ("bash ", "python ", "torchrun ", "sbatch ", "deepspeed ")
    found: list[str] = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line[:4].isspace() and line[4:].startswith(starts)]
        found += [line.strip() for line in lines]
        found += [word if word.startswith(starts) else f"python {word}" for word in IN_TEXT.findall(text)]
    return list(dict.fromkeys(command.removesuffix(" ...") for command in found))


@cache
def usage_of(script: str) -> str:
    """The help of a script, as a process of its own: that it starts so is tested once for each."""
    words = [sys.executable, script, "--help"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def ranks_of(words: list[str]) -> int:
    """How many a command starts; a batch script says how many a node has."""
    options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if words[1:3] == ["-m", "pretrain.launch"]:
        return launch.parse(words[3:]).ranks
    if words[0] == "torchrun":
        return int(words[words.index("--nproc-per-node") + 1])
    if scripts := [word for word in words if word.startswith("slurm/") and word != "slurm/submit.sh"]:
        per_node = re.search(r"^#SBATCH --ntasks-per-node=(\d+)$", (ROOT / scripts[0]).read_text(), re.M)
        return int(options.get("--nodes", 1)) * int(per_node[1] if per_node else 1)
    return 1


def require_valid(script: str, words: list[str], ranks: int) -> None:
    """Refuse a configuration as the dry run of the command would, on a machine that has the data."""
    named = ["--config", *words] if words[0].endswith(".yaml") else words
    if script in ("pretrain.train", "slurm/pretrain_looped.sh"):
        check_layout(train.COMMAND_LINE.parse(named).config, ranks)
    elif script in ("finetune/coconut.py", "slurm/finetune_coconut.sh"):
        check_finetuning(coconut.COMMAND_LINE.parse(named).config, ranks)
    elif script == "finetune/grpo.py":
        check_rewarding(grpo.COMMAND_LINE.parse(named).config, ranks)
    elif script == "tools/sweep.py":
        family = read_config(ROOT / words[0], SweepConfig)
        for cell in cells(family):
            sweep.check(family, cell, Path("runs"))


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_name_what_exists(command: str, monkeypatch: pytest.MonkeyPatch, commands: Commands) -> None:
    """Scripts and configurations exist, options are the scripts' own, and what trains is a valid configuration that
    fits the ranks that the command starts."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    ranks = ranks_of(words)
    if words[1:3] == ["-m", "pretrain.launch"]:
        words = ["python", *launch.parse(words[3:]).command]
    if words[1] == "slurm/submit.sh":
        words = [words[0], *(word for word in words[2:] if word != "--verify")]
    module = (
        words.index("-m") + 2
        if "-m" in words
        else next(i for i, word in enumerate(words) if word.endswith((".py", ".sh"))) + 1
    )
    script, arguments = words[module - 1], words[module:]
    if "config.yaml" in arguments:
        return  # a user's own, beside a module of theirs: tests of what it plugs in run it from such a folder
    if script.startswith("slurm/"):  # without the options of sbatch
        arguments = [word for word in arguments if not word.startswith("--")]
    if "--help" not in arguments and arguments:
        require_valid(script, arguments, ranks)
    if script == "pretrain.train":
        return
    if script in ("pretrain.verify", "pretrain.plan"):
        if arguments:
            options = {"pretrain.verify": verify.parse, "pretrain.plan": plan.parse}[script](arguments)
            assert read_config(ROOT / options.config, RunConfig, options.overrides).run.name
        return
    if script == "pretrain.serve":
        assert serve.parse(arguments).run.parts[0] == "runs"
        return
    assert (ROOT / script).is_file()
    if script.endswith(".py"):
        subcommand = [word for word in arguments[:1] if re.fullmatch("[a-z]+", word)]
        usage = usage_of(script)
        if subcommand:
            of_it = commands.run(script, *subcommand, "--help", cwd=ROOT)
            assert of_it.returncode == 0, of_it.stderr
            usage = of_it.stdout
        assert {word for word in arguments if word.startswith("--")} <= set(re.findall(r"--[a-z][a-z-]*", usage))
    for word in arguments:
        assert not word.endswith(".yaml") or (ROOT / word).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_readme_names_files_and_keys_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for place in re.findall(r"\]\(([^):]+)\)", text):
        assert (document.parent / place).exists(), place
    names = re.findall(r"`([\w./-]+)`", text)
    for name in [name for name in names if name.startswith(("pretrain/", "tools/", "configs/", "slurm/", "tests/"))]:
        assert (ROOT / name).exists(), name
    fields = [schema.model_fields for schema in (RunConfig, FinetuneConfig, GrpoConfig)]
    sections = {section for known in fields for section in known}
    for section, key in [
        name.split(".")[:2] for name in names if name.split(".")[0] in sections and "." in name and "/" not in name
    ]:
        annotations = [known[section].annotation for known in fields if section in known]
        assert any(annotation is not None and key in annotation.model_fields for annotation in annotations), (
            f"{section}.{key}"
        )


def users_of(*calls: str) -> set[str]:
    """Files of the product, without benchmarks, that hold one of these texts."""
    paths = [path for folder in ("pretrain", "finetune", "tools") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in paths if any(call in path.read_text() for call in calls)}
    return {path for path in found if not path.startswith("tools/benchmarks/")}


def test_json_from_files_is_read_in_one_way() -> None:
    """`parse_json` knows that nesting can be too deep; what a process of ours has just written needs no care."""
    own = {"pretrain/storage.py", "pretrain/data/stream/worker.py", "pretrain/checkpoint/store.py"}
    assert users_of("json.loads(", "json.load(") == own


def test_a_wrong_option_is_one_line_of_every_command() -> None:
    """`OptionParser` says it so; argparse's own prints the usage first."""
    assert users_of("argparse.ArgumentParser(") == set()


def test_the_rooms_are_listed_in_the_order_in_which_they_may_import() -> None:
    """All of them, as the contract has them; those of one row by the lowest of its layers."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["pretrain"]]
    layer_of = {name: number for number, layer in enumerate(layers) for name in layer.split(" | ")}
    table = (ROOT / "pretrain" / "README.md").read_text(encoding="utf-8").split("## The rooms")[1].split("\n## ")[0]
    names = [
        re.findall(r"`(?:pretrain/)?(\w+)(?:\.py)?`", line.split("|")[1])
        for line in table.splitlines()
        if "| `" in line
    ]
    assert sorted(name for row in names for name in row) == sorted(layer_of)
    depths = [max(layer_of[name] for name in row) for row in names]
    assert depths == sorted(depths), names
