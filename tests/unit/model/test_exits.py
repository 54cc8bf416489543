"""The distribution over exits, its priors, and what training makes of them on one device."""

import math
from itertools import pairwise

import pytest
import torch

from pretrain.config.loop_loss import LoopLossSection
from pretrain.config.run import RunConfig
from pretrain.model.exits import expected_loss, log_exit_probabilities


def test_exit_probabilities_are_those_of_stopping_loop_by_loop() -> None:
    stop = torch.tensor([[0.5, 0.1], [0.25, 0.2], [0.9, 0.3]], dtype=torch.float64)  # after each of three loops of four
    probabilities = log_exit_probabilities(stop.logit()).exp()
    wanted = torch.tensor([[0.5, 0.1], [0.125, 0.18], [0.3375, 0.216], [0.0375, 0.504]], dtype=torch.float64)
    torch.testing.assert_close(probabilities, wanted)
    assert torch.equal(log_exit_probabilities(stop[:0]), torch.zeros(1, 2, dtype=torch.float64))  # one loop takes all
    sure = log_exit_probabilities(torch.tensor([[80.0], [-80.0]]))
    assert sure.isfinite().all()


def test_a_uniform_prior_rewards_the_entropy() -> None:
    log_odds, losses = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = torch.cat((losses, losses[:1] ** 2))
    p = log_exit_probabilities(log_odds).exp()
    entropy = -(p * p.log()).sum(0)
    prior = LoopLossSection(over="expected").log_prior(4)
    torch.testing.assert_close(
        expected_loss(log_odds, losses, prior, 0.3), (p * losses).sum(0) + 0.3 * (math.log(4) - entropy)
    )


@pytest.mark.parametrize(
    ("prior", "ratios"), [("uniform", [1, 1, 1]), ("geometric", [2 / 3] * 3), ("poisson", [2, 1, 2 / 3])]
)
def test_priors_are_normalised_and_fall_as_their_names_say(prior: str, ratios: list[float]) -> None:
    section = LoopLossSection(over="expected", prior=prior, prior_mean=3.0)  # type: ignore[arg-type]
    shares = [math.exp(value) for value in section.log_prior(4)]
    assert sum(shares) == pytest.approx(1)
    assert [later / earlier for earlier, later in pairwise(shares)] == pytest.approx(ratios)
    assert section.log_prior(1) == [0.0]


def test_an_expected_loss_without_a_gate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.loop_loss\.over=expected needs model\.loop\.exit=gate or linear"):
        RunConfig.model_validate({"train": {"loop_loss": {"over": "expected"}}})
