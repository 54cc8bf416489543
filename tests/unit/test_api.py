"""Runs in Python: `load_run` gives what the model, its tools and its files give, tables are their rows, errors are one
line, and the notebook runs."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import finetune
import pretrain
from finetune.answers.evaluation import load_questions
from finetune.answers.results import CoconutRow
from finetune.api import FinetunedRun
from pretrain.api import LoadedRun
from pretrain.generation.generate import generate
from pretrain.generation.sampling import Generation
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.step import MetricsRow
from tests.support.finetuned_runs import save_run
from tools import eval_coconut, eval_depth

ROOT = Path(__file__).parents[2]
LOOPS = [3, 1, 2]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "run"
    save_run(path)
    return path


@pytest.fixture
def run(run_dir: Path) -> LoadedRun:
    return pretrain.load_run(run_dir, device="cpu")


@pytest.fixture
def finetuned(run_dir: Path) -> FinetunedRun:
    return finetune.load_run(run_dir, device="cpu")


@pytest.fixture
def question(finetuned: FinetunedRun) -> str:
    return finetuned.questions("test", 1)[0].question


def test_logits_and_states_of_several_loop_counts_are_those_of_each_alone(run: LoadedRun, question: str) -> None:
    ids = run.encode(question)
    assert run.tokens(question) == [run.tokenizer.decode([token]) for token in ids.tolist()]
    final, raw = run.states(question, num_loops=LOOPS), run.states(ids, num_loops=LOOPS, after="loop")
    for place, num_loops in enumerate(LOOPS):
        alone = run.model(ids[None], num_loops)
        torch.testing.assert_close(final[place], alone)
        wanted = run.model.all_logits(alone)[:, : run.tokenizer.vocab_size]
        torch.testing.assert_close(run.logits(question, num_loops=num_loops), wanted)
        finished = run.model.finish(raw[place], run.model.context(ids[None]), num_loops)
        torch.testing.assert_close(finished, alone)
    assert run.states(question).shape == (run.num_loops, len(ids), 16)
    torch.testing.assert_close(run.states(ids, num_loops=3), final[:1])
    assert not run.logits(question).requires_grad


def test_generation_is_that_of_the_tool(run: LoadedRun, question: str) -> None:
    prompts = [question, question[:9]]
    settings = Generation(
        max_new_tokens=7, vocab_size=run.tokenizer.vocab_size, end_ids=(run.tokenizer.eos_id,), num_loops=3,
        temperature=0.9, top_p=0.8, seed=4,
    )  # fmt: skip
    new = generate(run.model, [run.encode(prompt).tolist() for prompt in prompts], settings)
    how: dict[str, Any] = {"num_loops": 3, "max_new_tokens": 7, "temperature": 0.9, "top_p": 0.8, "seed": 4}
    assert run.generate(prompts, **how) == [run.tokenizer.decode(row) for row in new]
    assert run.generate(question, **how) == run.tokenizer.decode(new[0])


def test_tables_are_the_rows_of_the_files(run_dir: Path, run: LoadedRun) -> None:
    rows = [
        MetricsRow(
            step=step, loss=4.0 / step, grad_norm=1.0, lr=1e-3, tokens_per_s=5.0, flops_per_s=6.0, mfu_pct=None,
            step_time_s=0.1, memory_gib=0.2, skipped=0, tokens_seen=8 * step, num_loops=2,
        )
        for step in (1, 2)
    ]  # fmt: skip
    file = JsonLines(run_dir / "metrics.jsonl")
    file.append(rows)
    with file.path.open("a") as stream:
        stream.write('{"step": 3, "lo')
    with pytest.warns(UserWarning, match="metrics.jsonl"):
        found = run.metrics()
    assert found["loss"].tolist() == [4.0, 2.0] and found["num_loops"].tolist() == [2, 2]
    assert "mfu_pct" not in found  # empty in all rows
    assert run.results().empty


def test_scores_are_those_of_eval_depth(run_dir: Path, run: LoadedRun, capsys: pytest.CaptureFixture[str]) -> None:
    found = run.score(["prosqa_symbolic"], [1, 2], num_examples=5)
    command = f"--run {run_dir} --tasks prosqa_symbolic --num-loops 1,2 --num-examples 5 --offline"
    assert eval_depth.main(command.split()) == 0
    capsys.readouterr()
    kept = run.results()
    for table in (found, kept):
        assert table["num_loops"].tolist() == sorted(table["num_loops"]) and set(table["num_examples"]) == {5}
    columns = ["run", "step", "task", "metric", "num_loops", "value", "inputs", "shortcut"]
    assert found[columns].to_dict() == kept[columns].to_dict()


def test_answers_are_those_of_eval_coconut(finetuned: FinetunedRun, run_dir: Path) -> None:
    found = finetuned.score_answers("all", [1, 2], num_examples=4)
    assert eval_coconut.main(f"--run {run_dir} --latents all --num-loops 1,2 --num-examples 4".split()) == 0
    kept = finetuned.answers()
    columns = ["num_thoughts", "num_loops", "accuracy", "new_tokens", "flops_per_example", "inputs"]
    assert found[columns].to_dict() == kept[columns].to_dict()
    assert len(found) == 2 * 4 and {row.split for row in JsonLines(run_dir / "eval" / "coconut.jsonl").read(CoconutRow)}


def test_thoughts_are_states_fed_back(finetuned: FinetunedRun, question: str) -> None:
    thoughts = finetuned.thoughts(question, num_thoughts=3, num_loops=2)
    assert thoughts.shape == (3, 16)
    encoded = load_questions(finetuned.finetuned, num_examples=1).encoded[0].question
    states = finetuned.states([*encoded, finetuned.tokenizer.bot_id], num_loops=[2])[0]
    torch.testing.assert_close(thoughts[0], states[-1])
    texts = finetuned.answer([question, question], num_thoughts=2)
    assert texts == [finetuned.answer(question, num_thoughts=2)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.logits([96]), "token ids 96 to 96, the vocabulary has 96"),
        (lambda run: run.logits([]), "one sequence of token ids is needed"),
        (lambda run: run.states([1], num_loops=[0]), "loop counts start at 1"),
        (lambda run: run.states([1], num_loops=[]), "no loop count"),
        (lambda run: run.logits([1], num_loops=0), "num_loops=0: loop counts start at 1"),
        (lambda run: run.logits([1], num_loops=[1, 2]), r"num_loops=\[1, 2\]: a loop count is a whole number"),
        (lambda run: run.generate("A", num_loops=2.5), "num_loops=2.5: a loop count is a whole number"),
        (lambda run: run.generate("A", max_new_tokens=0), "max_new_tokens=0: needs at least 1"),
        (lambda run: run.generate("A", temperature=-1), "temperature=-1"),
        (lambda run: run.score(["nonsense"]), "nonsense: no such task"),
        (lambda run: run.score("nonsense"), "nonsense: no such task"),
        (lambda run: pretrain.load_run(run.run_dir / "none"), "no checkpoints there"),
    ],
)
def test_what_cannot_be_is_one_line(run: LoadedRun, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(run)
    assert "\n" not in str(caught.value)


def test_the_notebook_runs(run_dir: Path, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", str(run_dir))
    monkeypatch.setenv("TEXT", question[:24])
    notebook = nbformat.read(ROOT / "tools" / "notebooks" / "loops.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not any(output["output_type"] == "error" for output in outputs)
