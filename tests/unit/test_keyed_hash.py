"""Draws by a keyed hash give the values that every run so far was made with."""

import pytest

from pretrain.data.stream.order import make_key
from pretrain.generation.sampling import draw_uniform
from pretrain.keyed_hash import bits, open_uniform, uniform
from pretrain.model.initialise import draw
from pretrain.tasks.registry import make_task

# Values of commit e455d63, when each caller had a hash of its own.


def test_bits_and_numbers() -> None:
    assert [bits(f"loops/uniform/3/{step}") for step in (0, 7)] == [17768725218147965022, 16552436371082378294]
    rates = [open_uniform(f"loops/rate/3/{step}") for step in (0, 7)]
    assert rates == pytest.approx([0.3141137741211436, 0.16326305902914162], rel=1e-15)
    drawn = [draw_uniform(3, 1, position) for position in (0, 9)]
    assert drawn == pytest.approx([0.5250081063227933, 0.2988739689800718], rel=1e-15)
    chosen = [uniform(f"curriculum/{purpose}/3/2/1") for purpose in ("mix", "stage", "smooth")]
    assert chosen == pytest.approx([0.08030839886917496, 0.8501265518520312, 0.5402408455341396], rel=1e-15)


def test_keys_of_the_order_of_data() -> None:
    assert make_key(3, "source") == 12992141358999765911
    assert make_key("ä", -1, 2**40) == 167026954146770611


def test_initial_weights() -> None:
    drawn = draw((3,), 3, "layers.0.weight").tolist()
    assert drawn == pytest.approx([1.0978939533233643, 0.053771767765283585, 1.1232762336730957], rel=1e-7)


def test_examples_of_a_task() -> None:
    task = make_task("addition", {"num_operands": [2]})
    assert task.generate(3, 5).question.strip() == "396+099="
