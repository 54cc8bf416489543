"""What is not drawn."""

from pathlib import Path

import pytest

from tests.support.scaling_rows import write_rows
from tools.scaling_plot import main


def test_what_would_say_nothing_is_not_drawn_and_a_line_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models of one depth have no place beside each other on its axis; one that is deeper, or larger, changes that."""
    plain = [{"run": name, "seed": seed, "family": "baseline"} for seed, name in enumerate(("a", "b"))]
    file = write_rows(tmp_path / "depth.jsonl", *plain)
    (tmp_path / "scaling.svg").write_text("of other rows")
    assert main([str(file)]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("not drawn") == 1 and "\nnot drawn against depth: validation: all models are 2 layers deep\n" in said
    )
    assert f"plot: {tmp_path / 'scaling.html'}, fits: {tmp_path / 'fit.csv'}\n" in said
    assert not list(tmp_path.glob("scaling.*g"))
    write_rows(file, *plain, {"run": "c", "num_params": 5000})
    assert main([str(file)]) == 0
    figure = (tmp_path / "scaling.svg").read_text()
    assert "parameters" in figure and "effective depth" not in figure
    assert "not drawn against depth" in capsys.readouterr().out
    assert main([str(file), "--axis", "effective depth"]) == 0, "an axis that is asked for is drawn"
    assert "effective depth" in (tmp_path / "scaling.svg").read_text() and "not drawn" not in capsys.readouterr().out
    write_rows(file, *plain, {"run": "c", "effective_depth": 4, "family": "baseline"})
    assert main([str(file)]) == 0
    assert "effective depth" in (tmp_path / "scaling.svg").read_text() and "not drawn" not in capsys.readouterr().out
