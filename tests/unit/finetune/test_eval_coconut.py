"""The command that evaluates a fine-tuned run: its rows are those of the library, it goes on where it stopped, and
names what is wrong."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.answers.evaluation import Questions, choose_cells, evaluate_cells, load_questions
from finetune.answers.results import Cell, CoconutRow
from finetune.answers.scoring import Answerer, answer_settings
from finetune.run.finetuned_model import FinetunedModel, load_finetuned
from pretrain.checkpoint.run import save_weights
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.gpt import LoopedGPT
from pretrain.rows.jsonl import JsonLines
from pretrain.tasks.shortcuts import best_shortcut
from pretrain.tasks.task import Example
from tests.support.example_files import write_examples
from tests.support.finetuned_runs import MODEL, save_run

SCRIPT = Path(__file__).parents[3] / "tools" / "eval_coconut.py"
CPU = torch.device("cpu")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(ended.value.code or 0)


def without_time(row: CoconutRow) -> dict[str, Any]:
    return {key: value for key, value in vars(row).items() if key != "seconds_per_example"}


def first_row(finetuned: FinetunedModel, questions: Questions, cell: Cell, folder: Path, *, batch: int) -> CoconutRow:
    return next(evaluate_cells(finetuned, questions, [cell], JsonLines(folder / "rows.jsonl"), batch=batch))


def test_the_command_scores_every_cell_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tiny"
    config = save_run(run)
    arguments = ["--run", run, "--latents", "0,2,3", "--num-loops", "1,3", "--batch", 4]
    assert command(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out.splitlines()
    best = 100 * best_shortcut("prosqa_symbolic", config.data.test.parameters).accuracy
    assert out[0] == f"{run}, step 7, 6 examples of test; best shortcut {best:.1f} %; chance 50.0 %"
    assert [line.split()[:3] for line in out[2:-1]] == [["coconut", k, loops] for loops in "13" for k in "023"]
    file = run / "eval" / "coconut.jsonl"
    rows = JsonLines(file).read(CoconutRow)
    assert [(row.num_loops, row.num_thoughts) for row in rows] == [(loops, k) for loops in (1, 3) for k in (0, 2, 3)]
    assert {(row.run, row.step, row.epoch, row.stage, row.method, row.split, row.num_examples) for row in rows} == {
        ("tiny", 7, 8, 1, "coconut", "test", 6)
    }

    whole = file.read_text().splitlines()
    file.write_text("\n".join([*whole[:3], whole[3][:20]]))  # stopped in the middle of the fourth row
    assert command(monkeypatch, *arguments) == 0
    assert [json.loads(line) for line in file.read_text().splitlines()[:3]] == [json.loads(line) for line in whole[:3]]
    assert f"warning: {file}:4: Invalid JSON" in capsys.readouterr().err
    again = JsonLines(file).read(CoconutRow, strict=True)
    assert [without_time(row) for row in again] == [without_time(row) for row in rows]

    assert command(monkeypatch, "--run", run, "--latents", "all") == 0  # in the batches of training
    more = JsonLines(file).read(CoconutRow)[len(rows) :]
    most = config.curriculum.max_slots
    assert [row.num_thoughts for row in more] == list(range(most + 1))
    assert {row.batch for row in more} == {config.validation.batch}


def test_a_row_is_what_the_library_counts(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    config = save_run(run)
    finetuned = load_finetuned(run, CPU)
    questions = load_questions(finetuned)
    row = first_row(finetuned, questions, Cell(2, 3), tmp_path, batch=2)
    settings = answer_settings(config, finetuned.trained.tokenizer, num_slots=2, num_loops=3)
    model, tokenizer = finetuned.trained.model, finetuned.trained.tokenizer
    tally = Answerer(model=model, tokenizer=tokenizer, settings=settings, batch=6).score(questions)
    assert (row.accuracy, row.flops_per_example) == (tally.accuracy, tally.flops / 6)
    assert row.new_tokens == 2 + tally.num_text_tokens / 6
    assert row.examples_by_chain_length == {str(length): count for length, count in sorted(tally.num_examples.items())}


def test_the_best_checkpoint_is_taken_unless_a_step_is_named(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    save_run(run, step=9)
    assert load_finetuned(run, CPU).trained.step == 9
    save_run(run / "best", step=5)
    for given in (run, run / "best"):
        finetuned = load_finetuned(given, CPU)
        assert (finetuned.trained.step, finetuned.run_dir) == (5, run)
    assert load_finetuned(run, CPU, step=9).trained.step == 9


def test_a_run_that_started_from_other_weights_is_loaded(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    save_run(run, checkpoint={"init_from": "runs/other"})
    finetuned = load_finetuned(run, CPU)
    assert (finetuned.config.checkpoint.init_from, finetuned.trained.saved.model.hidden_size) == ("runs/other", 16)


def test_a_classifier_that_was_trained_ends_the_thoughts(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    save_run(run, with_classifier=True, method={"stop": "classifier"})
    finetuned = load_finetuned(run, CPU)
    assert finetuned.stop_classifier is not None
    assert finetuned.stop_classifier.weight.shape == (1, 16)
    row = next(
        evaluate_cells(finetuned, load_questions(finetuned), [Cell(6, 1)], JsonLines(tmp_path / "rows.jsonl"), batch=3)
    )
    assert 1 <= row.mean_thoughts < 6 == row.num_thoughts


def test_a_method_without_slots_has_one_cell(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    save_run(run, method={"name": "cot"})
    finetuned = load_finetuned(run, CPU)
    assert choose_cells(finetuned, None, [1, 2]) == choose_cells(finetuned, "all", [1, 2]) == [Cell(0, 1), Cell(0, 2)]
    row = next(
        evaluate_cells(finetuned, load_questions(finetuned), [Cell(0, 1)], JsonLines(tmp_path / "rows.jsonl"), batch=3)
    )
    assert (row.method, row.mean_thoughts) == ("cot", 0)
    with pytest.raises(ValueError, match=r"method cot of .* has no slots"):
        choose_cells(finetuned, [0, 1], None)


def test_a_file_is_read_in_the_form_that_the_run_was_trained_on(tmp_path: Path) -> None:
    run, file = tmp_path / "tiny", tmp_path / "mine.json"
    save_run(run)
    finetuned = load_finetuned(run, CPU)
    whole = load_questions(finetuned)
    write_examples(file, whole.examples)
    ours = load_questions(finetuned, file=file, num_examples=4)
    assert (ours.split, ours.examples, ours.encoded, ours.form) == (
        "mine.json",
        whole.examples[:4],
        whole.encoded[:4],
        whole.form,
    )


def test_another_file_of_the_same_name_is_another_question(tmp_path: Path) -> None:
    run, file = tmp_path / "tiny", tmp_path / "mine.json"
    save_run(run)
    finetuned = load_finetuned(run, CPU)
    whole = load_questions(finetuned).examples
    counts, rows = [], JsonLines(tmp_path / "rows.jsonl")
    for examples in (whole[:3], whole[3:6], whole[3:6]):
        write_examples(file, examples)
        next(evaluate_cells(finetuned, load_questions(finetuned, file=file), [Cell(0, 1)], rows, batch=3))
        counts.append((len(rows.path.read_text().splitlines()), rows.problems))
    what = "the row of mine.json at 0 thoughts and 1 loops differs in examples: it does not count"
    assert counts == [(1, []), (2, [f"{rows.path}: {what}"]), (2, [])]


def test_another_batch_is_timed_anew_and_answers_the_same(tmp_path: Path) -> None:
    """The seconds of one test case, as the paper gives them, are not those of a batch of the training run."""
    run = tmp_path / "tiny"
    save_run(run)
    finetuned = load_finetuned(run, CPU)
    questions = load_questions(finetuned)
    rows = [first_row(finetuned, questions, Cell(2, 1), tmp_path, batch=batch) for batch in (6, 1, 6)]
    assert [row.batch for row in JsonLines(tmp_path / "rows.jsonl").read(CoconutRow)] == [6, 1]
    assert rows[0] == rows[2] and rows[0].accuracy == rows[1].accuracy
    assert rows[0].seconds_per_example != rows[1].seconds_per_example


def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tiny"
    task = {"task": "prosqa_symbolic", "num_examples": 2}
    save_run(run, data={"train": task, "validation": task, "tokenizer": "symbols:ab"})
    plain, tokenizer = tmp_path / "plain", run / "tokenizer.json"
    section = RunConfig.model_validate(
        {"model": MODEL, "train": {"precision": "fp32"}, "data": {"tokenizer": str(tokenizer)}}
    )
    meta = {"config": section.model_dump(mode="json"), "tokenizer_sha256": Tokenizer.load(tokenizer).sha256}
    save_weights(plain, dict(LoopedGPT(section.model, section.train.seq_len).named_parameters()), meta)
    marked = tmp_path / "marked.json"
    write_examples(marked, [Example("Aa,?Aab", ("Aa",), "A=a")])
    for arguments, message in (
        (["--run", run, "--data", marked], f"{marked}: example 0: its answer 'A=a' holds '=', which marks where the"),
        (["--run", tmp_path / "nothing"], f"{tmp_path / 'nothing'}: no checkpoints there"),
        (["--run", plain], f"{plain} was not fine-tuned: train it with finetune/coconut.py --init {plain}"),
        (["--run", run], "data.test: the run has none; it has train, validation, or name a file with --data"),
        (["--run", run, "--data", tmp_path / "absent.json"], f"{tmp_path / 'absent.json'}: No such file or directory"),
        (["--run", run, "--split", "train", "--step", 3], f"{run / 'checkpoints'}: no checkpoint of step 3"),
    ):
        assert command(monkeypatch, *arguments) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"error: {message}")
        assert (out, err.count("\n")) == ("", 1)
    for arguments, message in (
        (["--latents", "0,x"], "needs whole numbers"),
        (["--latents", "-1"], "at least 0"),
        (["--num-loops", "0"], "at least 1"),
    ):
        assert command(monkeypatch, "--run", run, *arguments) == 2
        assert message in capsys.readouterr().err


def test_soft_thoughts_are_for_a_model_that_reasons_in_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their rows are those of their own settings, and the row without any is the ordinary one."""
    run = tmp_path / "cot"
    save_run(run, method={"name": "cot"})
    assert command(monkeypatch, "--run", run) == 0
    for beta, made in (("1", 2), ("1", 0), ("2", 2)):
        file = run / "eval" / "coconut.jsonl"
        before = len(file.read_text().splitlines())
        assert command(monkeypatch, "--run", run, "--soft-thoughts", "0,1,3", "--soft-beta", beta) == 0
        assert len(file.read_text().splitlines()) - before == made
    assert [row.num_thoughts for row in JsonLines(file).read(CoconutRow)] == [0, 1, 3, 1, 3]
    save_run(tmp_path / "coconut")
    capsys.readouterr()
    assert command(monkeypatch, "--run", tmp_path / "coconut", "--soft-thoughts", "1") == 2
    assert "has slots of its own; they are for a model that reasons in text" in capsys.readouterr().err
    assert command(monkeypatch, "--run", run, "--soft-thoughts", "1", "--soft-stop", "-1") == 2
    assert "soft-beta=None and soft-stop=-1.0: each needs 0 or more" in capsys.readouterr().err


def test_a_file_of_text_lines_is_split_as_the_run_was_trained(tmp_path: Path) -> None:
    """Its steps are sentences, between which only the run says what stands."""
    run, file, listed = tmp_path / "tiny", tmp_path / "more.txt", tmp_path / "more.json"
    file.write_text("1,2||a.;b. #### 3\n")
    write_examples(listed, [Example("1,2", ("a.", "b."), "3")])
    path = {"path": str(file), "step_separator": ";"}
    save_run(run, data={"train": path, "validation": path, "tokenizer": str(run / "tokenizer.json")})
    finetuned = load_finetuned(run, CPU)
    assert load_questions(finetuned, file=file).examples == load_questions(finetuned, file=listed).examples
    assert load_questions(finetuned, file=file).examples[0].steps == ("a.", "b.")
