"""More curves than colours, such as designs of the loop, are lines of dots; and what a spot is the mean of."""

import re
from pathlib import Path

import pytest

from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.analysis import analyse
from pretrain.scaling.axes import DEPTH
from pretrain.scaling.colours import PALETTE
from pretrain.scaling.dots import _order, _panel
from pretrain.scaling.figure import draw
from pretrain.scaling.spots import spots_of
from tests.unit.scaling.test_comparable import model_row
from tests.unit.scaling.test_fit import law_rows

TASK = {"task": "t", "task_group": "t", "metric": "acc", "stderr": 0.01, "chance": 0.25, "shortcut": 0.4}
NAMES = [f"design{number:02}" for number in range(len(PALETTE) + 1)]
RIVALS = [model_row(k, 1, value=value, **TASK) for k, value in ((1, 0.3), (4, 0.99))]


def design(number: int, *, seed: int = 0, task: dict[str, object] | None = None) -> list[EvaluationRow]:
    """1⊗4 at the loops that it was trained with, all alike, and at fewer and more, where later designs are better."""
    settings = {"model.loop.injection": NAMES[number]}
    more = dict(task or TASK)
    beyond = 0.5 + 0.04 * number + 0.02 * seed
    return [
        model_row(1, loops, trained=4, seed=seed, settings=settings, value=value, **more)
        for loops, value in ((2, 0.1), (4, 0.9), (8, beyond))
    ]


def all_designs() -> list[EvaluationRow]:
    return [row for number in range(len(NAMES)) for seed in (0, 1) for row in design(number, seed=seed)]


def test_designs_are_sorted_by_what_they_do_beyond_their_loops() -> None:
    panel = _panel(analyse([*all_designs(), *RIVALS]), "t")
    assert [line.split("=")[1] for line in _order([panel])] == [f"{name} (2)" for name in NAMES]  # from the bottom up
    for line, number in zip(sorted(panel.lines), range(len(NAMES)), strict=True):
        assert line.trained and line.beyond
        assert (line.trained.label, line.trained.value) == ("1⊗4", 0.9)
        assert line.beyond.label == "1⊗8" and line.beyond.value == pytest.approx(0.51 + 0.04 * number)
        assert line.beyond.error == pytest.approx(0.02 / 2**0.5) and len(line.beyond.seeds) == 2
    assert [(rival.label, rival.value) for rival in panel.rivals] == [("1⊗1", 0.3), ("4⊗1", 0.99)]
    assert panel.floors == {"chance": 0.25, "best shortcut": 0.4}


def test_of_a_loss_the_lowest_is_on_top() -> None:
    loss = {"task": "validation", "task_group": "validation", "metric": "nll", "stderr": 0.01}
    rows = [row for number in range(3) for row in design(number, task=loss)]
    order = _order([_panel(analyse(rows), "validation")])
    assert [name.split("=")[1] for name in order] == NAMES[2::-1]


def test_more_curves_than_colours_are_drawn_as_dots(tmp_path: Path) -> None:
    file = tmp_path / "figure.svg"
    draw(analyse([*all_designs(), *RIVALS]), [file])
    text = file.read_text()
    assert all(f"injection={name} (2)" in text for name in NAMES)
    assert "1⊗8: more loops than it was trained with" in text and "1⊗4: the most loops it was trained with" in text
    assert "layers of their own, not looped" in text and "best shortcut" in text
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])  # type: ignore[index]
    sizes = [float(size) for size in re.findall(r"(?:font: |font-size: )[^;]*?([\d.]+)px", text)]
    assert sizes and min(sizes) * 850 / width >= 9  # where the figure is shown 850 wide
    few = [row for number in range(3) for row in design(number)]
    draw(analyse([*few, *RIVALS]), [file])
    assert "effective depth D (layers)" in file.read_text()


def test_the_joint_law_of_many_models_is_a_figure_of_its_own(tmp_path: Path) -> None:
    file, law = tmp_path / "scaling.svg", tmp_path / "law.svg"
    losses = law_rows(0.46, 0.001, 0)
    file.write_text("of other rows")
    assert draw(analyse(losses), [file]) == [
        "not drawn: 24 models, of which 5 would be called looped, k⊗L tokens=1e+08"
    ]
    assert "joint law: phi = 0.4" in law.read_text() and not file.exists()
    draw(analyse(losses), [file], wanted=[DEPTH])
    assert "joint law: phi = 0.4" in file.read_text() and not law.exists(), "one of the two has it"


def test_a_name_of_many_settings_has_two_lines(tmp_path: Path) -> None:
    long = {f"model.loop.{name}": "x" * 12 for name in ("injection", "injection_at", "start")}
    rows = [model_row(1, 4, settings=long, value=0.5, **TASK), *all_designs()]
    draw(analyse(rows), [tmp_path / "figure.svg"])
    lines = re.findall(r"<text[^>]*>([^<]*x{12}[^<]*)<", (tmp_path / "figure.svg").read_text())
    assert lines == ["injection=xxxxxxxxxxxx,", "injection_at=xxxxxxxxxxxx, [...]"]  # what has no place is on the page


def test_models_of_one_depth_that_were_trained_with_other_loops_are_no_seeds_of_each_other() -> None:
    """1⊗1, 1⊗2 and 1⊗4, all run at 8 loops, which none was trained with."""
    values = {1: 0.25, 2: 0.5, 4: 0.9}
    rows = [
        model_row(1, loops, trained=trained, value=value, **TASK)
        for trained, value in values.items()
        for loops in (trained, 8)
    ]
    (curve,) = [curve for curve in analyse(rows).curves if curve.family == "looped"]
    beyond = [spot for spot in spots_of(curve, DEPTH) if not spot.is_trained]
    assert sorted(spot.value for spot in beyond) == [0.25, 0.5, 0.9] and all(len(spot.seeds) == 1 for spot in beyond)
