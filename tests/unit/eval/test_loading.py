"""All tasks are loaded before the first is scored, whoever scores them, and without a network nothing waits for it."""

import socket
from pathlib import Path
from typing import Any

import pytest
from datasets import config
from huggingface_hub import constants

from pretrain.eval import loading
from pretrain.eval.groups import ResolvedTask, resolve
from pretrain.eval.harness import LoopedLM
from tests.support.corpus import make_tokenizer
from tests.unit.hf.test_convert import make_run
from tools import eval_depth

TASKS = [f"variable_assignment_code_depth{depth}" for depth in (0, 1)]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE", "DISABLE_MULTIPROC"):
        monkeypatch.setenv(name, "1")  # the command sets these for its own process
    make_tokenizer(tmp_path / "t.model")
    return make_run(tmp_path / "run", tmp_path / "t.model", {"num_loop_layers": 1})


@pytest.mark.parametrize("num_loops", ["1,2", "auto:change:0.1"])
def test_every_task_is_loaded_before_the_first_is_scored(
    run_dir: Path, num_loops: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    load, generate = loading.load_tasks, LoopedLM.generate_until

    def noted_load(task: ResolvedTask, *arguments: Any, **more: Any) -> Any:
        done.append(f"load {task.name}")
        return load(task, *arguments, **more)

    def noted_generate(*arguments: Any, **more: Any) -> Any:
        done.append("score")
        return generate(*arguments, **more)

    monkeypatch.setattr(loading, "load_tasks", noted_load)
    monkeypatch.setattr(LoopedLM, "generate_until", noted_generate)
    asked = ["--run", str(run_dir), "--offline", "--num-examples", "2", "--num-loops", num_loops, "--tasks"]
    assert eval_depth.main([*asked, ",".join(TASKS)]) == 0
    assert done[:2] == [f"load {task}" for task in TASKS] and len(done) > 3 and set(done[2:]) == {"score"}
    assert f"loading {TASKS[1]} (2/2)" in capsys.readouterr().err  # in a pipe, as here
    assert eval_depth.main([*asked, "svamp"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: not evaluated: svamp; the reasons are above"


def test_without_a_network_it_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def nowhere(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError(-2, "no network here")

    for module, name in ((constants, "HF_HUB_OFFLINE"), (config, "HF_HUB_OFFLINE"), (config, "HF_DATASETS_OFFLINE")):
        monkeypatch.setattr(module, name, False)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    tasks = [task for task in resolve(["piqa", *TASKS], None) if isinstance(task, ResolvedTask)]
    assert [task.source for task in tasks] == ["network", "generator", "generator"]
    said: list[str] = []
    loaded, (skipped,) = loading.load_all(tasks, None, num_examples=2, say=said.append)
    assert (list(loaded), len(asked), len(said)) == (TASKS, 1, 3)
    assert skipped.name == "piqa" and skipped.reason.endswith("its files are read from --data-dir")
