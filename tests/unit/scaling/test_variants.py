"""Variants of a model have a law of their own, of runs at the settings of the optimizer that suit each of them."""

import re
from dataclasses import replace
from itertools import cycle

import pytest

from pretrain.scaling.analysis import analyse
from pretrain.scaling.law import JointLaw
from pretrain.scaling.table import render
from pretrain.scaling.tables import make_tables
from tests.unit.scaling.test_fit import law_rows


def test_each_variant_has_a_phi_of_its_own() -> None:
    """Streams and learning rates differ: the first makes a variant, the second does not, nor do sizes."""
    variants = {0.46: {}, 0.65: {"model.loop.residual": "hyper", "model.loop.hyper.streams": 4}}
    rows = [
        replace(row, run=f"{row.run} {phi}", settings={"model.hidden_size": row.num_params, "optimizer.lr": lr} | loop)
        for phi, loop in variants.items()
        for row, lr in zip(law_rows(phi, 0.0005, 0), cycle((1e-3, 3e-3)))
    ]
    laws = analyse(rows).laws
    assert list(laws) == ["defaults", "streams=4, residual=hyper"]
    for law, phi in zip(laws.values(), variants, strict=True):
        assert isinstance(law, JointLaw) and law.phi == pytest.approx(phi, abs=0.05)
    table = render(next(table for table in make_tables(analyse(rows)) if "phi" in table.title))
    assert re.search(r"streams=4, residual=hyper +0\.6", table) and "variant" in table
    few = "\n".join(map(render, make_tables(analyse(rows[:48] + rows[-3:]))))
    assert "streams=4, residual=hyper: needs 8 validation losses" in few


def test_of_a_model_with_several_learning_rates_the_law_has_the_best() -> None:
    """A rate at which loops lose what they are worth, more so the more there are, in another number of seeds."""
    best = [
        replace(row, settings={"model.hidden_size": row.num_params, "optimizer.lr": 1e-3, "optimizer.weight_decay": 0})
        for row in law_rows(0.46, 0.0005, 0)
    ]
    worse = [
        replace(
            row, run=f"{row.run} {seed}", value=row.value + 0.02 * row.num_loops,
            settings={**(row.settings or {}), "optimizer.lr": 3e-3, "optimizer.weight_decay": decay},
        )
        for row in best
        for seed, decay in ((0, 0.1), (1, 0.1), (2, 0.5))
    ]  # fmt: skip
    alone, swept = analyse(best), analyse([*worse, *best])
    assert list(swept.laws) == [""] and not alone.left_out
    found, wanted = swept.laws[""], alone.laws[""]
    assert isinstance(found, JointLaw) and isinstance(wanted, JointLaw)
    assert found.phi == wanted.phi and len(found.losses) == len(best)
    (line,) = swept.left_out
    assert "differ in optimizer.lr, optimizer.weight_decay alone" in line and f"{len(worse)} others left out" in line
