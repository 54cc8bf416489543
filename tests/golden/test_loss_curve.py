"""The loss curve of a small run, kept in git: a change of the numerics must be meant.

To keep a new curve after such a change: `python -m tests.golden.keep`, and say in the commit why it moved.
"""

import json
from pathlib import Path

import pytest

from tests.distributed.pool import RankPool
from tests.golden.curve import CURVE, losses


def test_the_loss_curve_is_the_one_in_git(tmp_path: Path, pool: RankPool) -> None:
    golden = json.loads(CURVE.read_text())
    (curve,) = pool.run(losses, tmp_path, world_size=1)
    assert curve == pytest.approx(golden, rel=2e-5)
    assert golden[0] - golden[-1] > 0.5  # it learns
