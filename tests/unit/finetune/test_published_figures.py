"""The committed figures that are not of the scaling plot are those that their tools draw from the committed rows."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.answers.results import CoconutRow
from finetune.kinds import kind_of
from finetune.search.redraw import read_numbers
from pretrain.config.read import read_config, resolved_yaml
from pretrain.config.sweep import SweepConfig, cells
from pretrain.rows.jsonl import JsonLines
from tools import block_similarity, latent_search, loops_and_thoughts, reward_plot

ROOT = Path(__file__).parents[3]
TUNED = ROOT / "configs" / "finetune" / "results"
MODELS = ROOT / "configs" / "sweeps" / "results"


def runs_of(results: Path, folder: Path) -> list[str]:
    """The runs of a sweep, as far as its published rows and its configuration say: names of their folders, in the order
    of a shell."""
    sweep = read_config(ROOT / "configs" / "sweeps" / f"{results.name}.yaml", SweepConfig)
    rows = JsonLines(results / "coconut.jsonl").read(CoconutRow, strict=True)
    found = []
    for cell in cells(sweep):
        run = folder / results.name / cell.name
        config = read_config(ROOT / sweep.config, kind_of(sweep).schema, list(cell.overrides))
        JsonLines(run / "eval" / "coconut.jsonl").append([row for row in rows if row.run == cell.name])
        (run / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")
        found.append(str(run))
    return sorted(found)


def same(committed: Path, drawn: Path) -> bool:
    """Whether two figures have the same drawing, down to the numbers."""
    texts = [re.sub("<metadata>.*?</metadata>", "", path.read_text(encoding="utf-8"), flags=re.S) for path in
             (committed, drawn)]  # fmt: skip
    return texts[0] == texts[1]


@pytest.mark.parametrize("name", ["p_hop_grpo", "prosqa_hard_small_grpo"])
def test_rewards_are_drawn_from_their_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert reward_plot.main([*runs_of(TUNED / name, tmp_path), "--out", str(tmp_path)]) == 0
    assert (TUNED / name / "rewards.csv").read_bytes() == (tmp_path / "rewards.csv").read_bytes()
    assert same(TUNED / name / "rewards.svg", tmp_path / "rewards.svg"), "draw it anew"


def scored(sweep: str, run: str) -> float:
    """Share of the test questions that a published run answers with all of its thoughts."""
    rows = JsonLines(TUNED / sweep / "coconut.jsonl").read(CoconutRow, strict=True)
    found = {row.num_thoughts: row.accuracy for row in rows if (row.run, row.split) == (run, "test")}
    return found[max(found)]


REWARDED = {  # policy -> what it starts from, and whether rewards raise it
    "text": ("prosqa_hard_small", "cot", True),
    "thoughts": ("prosqa_hard_small_from_cot", "sim_cot", True),
    "thoughts-likelihood": ("prosqa_hard_small_from_cot", "sim_cot", False),
}


@pytest.mark.parametrize("policy", REWARDED)
def test_rewards_do_in_every_seed_what_is_said_of_them(policy: str) -> None:
    sweep, start, rises = REWARDED[policy]
    for seed in range(3):
        before, after = (
            scored(sweep, f"{start}-seed{seed}"),
            scored("prosqa_hard_small_grpo", f"{policy}-seed{seed}"),
        )
        assert (after > before + 0.01) if rises else (after < before - 0.01)


def test_rewards_raise_two_hops_in_every_seed() -> None:
    rows = JsonLines(TUNED / "p_hop_grpo" / "coconut.jsonl").read(CoconutRow, strict=True)
    found = {(row.run, row.step): row.accuracy for row in rows if row.split == "validation"}
    for run in {run for run, _ in found}:
        assert found[run, 200] > found[run, 0] + 0.3
    assert len(found) == 6 * 9


def test_loops_and_thoughts_are_drawn_from_the_rows_of_both_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    names = "composition_small", "composition_small_from_prefixes"
    runs = [run for name in names for run in runs_of(TUNED / name, tmp_path)]
    assert loops_and_thoughts.main([*runs, "--out", str(tmp_path)]) == 0
    for name in ("loops_and_thoughts.csv", "loops_and_thoughts.svg"):
        assert same(TUNED / names[0] / name, tmp_path / name), f"{name}: draw it anew"


@pytest.mark.parametrize("name", ["regulariser_text_small", "regulariser_tasks_small"])
def test_cosines_are_drawn_from_their_table(name: str, tmp_path: Path) -> None:
    table = MODELS / name / "block_similarity.csv"
    assert block_similarity.main([str(table), "--out", str(tmp_path)]) == 0
    assert same(table.with_suffix(".svg"), tmp_path / "block_similarity.svg"), "draw it anew"
    assert not (tmp_path / "block_similarity.csv").exists()


def test_thoughts_are_drawn_from_their_numbers(tmp_path: Path) -> None:
    numbers = TUNED / "prosqa_hard_small_from_cot" / "numbers.json"
    assert latent_search.main(["--run", str(numbers), "--out", str(tmp_path)]) == 0
    for name in ("process.svg", "thoughts.svg"):
        assert same(numbers.with_name(name), tmp_path / name), f"{name}: draw it anew"


def test_numbers_of_thoughts_are_those_of_the_rows() -> None:
    """Right answers in the committed rows of the run that the numbers name."""
    folder = TUNED / "prosqa_hard_small_from_cot"
    found = read_numbers(folder / "numbers.json")
    rows = JsonLines(folder / "coconut.jsonl").read(CoconutRow, strict=True)
    mine = [row for row in rows if (row.run, row.split, row.step) == (found.run, found.split, found.grid[0].step)]
    accuracies = {f"{row.num_thoughts} thought{'s' * (row.num_thoughts != 1)}": row.accuracy for row in mine}
    assert accuracies and accuracies == {bar.label: bar.accuracy for bar in found.process if not bar.method}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,group\n8x1,query\n", "block_similarity.csv:2: no row of block_similarity.csv"),
        ("run,group,layer,other_layer,cosine\n8x1,query,0,4,nan\n", "block_similarity.csv:2: no row"),
        ("run,group,layer,other_layer,cosine\n8x1,query,0,4,1\n8x1,query,0,2,1\n", "pairs of 2 distances"),
    ],
)
def test_a_table_that_is_none_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "block_similarity.csv"
    file.write_text(text)
    assert block_similarity.main([str(file)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--block-size", "2"], "give it alone"), ([str(ROOT)], "give it alone")],
)
def test_a_table_goes_with_nothing_else(
    arguments: Sequence[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(MODELS / "regulariser_text_small" / "block_similarity.csv", tmp_path))
    assert block_similarity.main([str(file), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[", '{"run": 1}'])
def test_numbers_that_are_none_are_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "numbers.json").write_text(text)
    assert latent_search.main(["--run", str(tmp_path / "numbers.json")]) == 2
    error = capsys.readouterr().err
    assert "numbers.json: " in error and error.count("\n") == 1
