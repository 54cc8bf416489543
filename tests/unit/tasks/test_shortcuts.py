"""No configured size of a task is solved by a shortcut that its figures do not name."""

from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from pretrain.config.read import read_config
from pretrain.tasks.registry import make_task
from pretrain.tasks.shortcuts import score_rules

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("file", ["prosqa_hard_small", "prosqa_hard"])
def test_every_shortcut_of_the_hard_prosqa_is_a_coin(file: str) -> None:
    """Within 2 points over 2,500 questions, of which one standard error is 1.0 at most."""
    config = read_config(ROOT / f"configs/finetune/{file}.yaml", FinetuneConfig)
    task = make_task(config.data.test.task or "", config.data.test.parameters)
    examples = [task.generate(0, number) for number in range(2500)]
    scores = score_rules(task, examples, examples[:500])
    del scores["most common answer"]
    assert len(scores) >= 8
    assert all(abs(score - 0.5) < 0.02 for score in scores.values()), scores
