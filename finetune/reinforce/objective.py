"""The objective of GRPO on text, on loops and on latent thoughts.

    maximise  1/N Σ_answers Σ_actions min(r A, clip(r, 1 - ε, 1 + ε') A) - β KL        N: actions of the step

An action is a token of text or a thought, r its probability over that under the weights that it was drawn with, A the
reward of the answer less the mean of its group, by default over the group's standard deviation (Shao et al. 2024, arXiv
2402.03300, equation 3; divided by all actions of the step, as in DAPO, arXiv 2503.14476, so that no rank or micro-batch
shows in it). KL to the weights that training started from: of text exp(d) - d - 1 with d their log-ratio (equation 4),
of thoughts, normal with one deviation σ, |h - h'|² / 2σ².

Thoughts learn in one of two ways (`grpo.thoughts`), both without bias at r = 1:

    likelihood  a thought is an action: its normal density is made more or less likely, as in Latent-GRPO (arXiv
                2604.27998). One pass over a row, as all thoughts are given; the noise of d numbers a thought is in the
                gradient
    pathwise    text alone is an action, and the gradient of its probability runs back through the thoughts, which are
                computed anew with the noise that they were drawn with (Kingma and Welling 2014, arXiv 1312.6114)

With `over: every` the prediction of each loop is rewarded as if it had drawn the text, all loops alike (RLTT, arXiv
2602.10520); it is for answers without thoughts, which are states of the last loop.
"""

import torch
from torch import Tensor

from finetune.engine.interface import EngineObjective
from finetune.latent.forward import Passes
from finetune.latent.generation import AnswerSettings
from finetune.reinforce.batch import ActionLogs, RolloutBatch, RolloutStep
from finetune.reinforce.config import GrpoConfig
from finetune.reinforce.noisy import GivenThoughts, NoisyThoughts
from pretrain.model.gpt import LoopedGPT


class ActionLikelihood:
    """Probabilities of what was drawn; `settings` and `config` as it was drawn with."""

    def __init__(self, config: GrpoConfig, settings: AnswerSettings) -> None:
        self._config, self._settings = config, settings

    def of(self, model: LoopedGPT, batch: RolloutBatch) -> ActionLogs:
        """Log-probabilities of the actions of a batch."""
        states, rows = self._states(model, batch), batch.rows
        labels = rows.labels.flatten()[rows.supervised]
        chosen = [each.flatten(0, 1).index_select(0, rows.supervised) for each in states]
        text = torch.stack([self._text_logs(model, each, labels) for each in chosen])
        num_actions = 0 if self._config.grpo.thoughts == "pathwise" else batch.num_thoughts
        means = states[-1][:, rows.first_slot - 1 : rows.first_slot - 1 + num_actions]
        means = means.to(torch.promote_types(means.dtype, torch.float32))
        squares = (batch.thoughts[:, :num_actions].to(means) - means).square().sum(-1)
        return ActionLogs(text, -squares / self._two_variances, means)

    def divergence(self, now: ActionLogs, reference: ActionLogs) -> Tensor:
        """Estimate of KL(now | reference), summed over actions."""
        away = reference.text - now.text
        of_text = (away.exp() - away - 1).mean(0).sum()
        return of_text + (now.means - reference.means).square().sum() / self._two_variances

    @property
    def _two_variances(self) -> float:
        return 2 * self._config.rollout.thought_noise**2 or 1.0  # no thoughts without noise

    def _states(self, model: LoopedGPT, batch: RolloutBatch) -> list[Tensor]:
        """Final states [b, s, d] of the loops that are rewarded, the last one last."""
        num_loops, num_thoughts = self._settings.num_loops, batch.num_thoughts
        if self._config.grpo.over == "every":
            return Passes(model, batch.rows, 0, num_loops).run_all_loops()
        if not num_thoughts:
            return [Passes(model, batch.rows, 0, num_loops).run_prefix()]
        is_given = self._config.grpo.thoughts == "likelihood"
        way = GivenThoughts(thoughts=batch.thoughts) if is_given else NoisyThoughts(noise=batch.noise)
        return [way.states(model, batch.rows, num_thoughts, num_loops)]

    def _text_logs(self, model: LoopedGPT, states: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities [n] of tokens by final states [n, d]."""
        logits = model.all_logits(states)[:, : self._settings.vocab_size]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        never = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        never[list(self._settings.markers.after)] = True
        logits = logits.masked_fill(never, -torch.inf) / self._config.rollout.temperature
        return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


class GrpoObjective(EngineObjective):
    """Minimised is the negative of the above."""

    def __init__(self, model: LoopedGPT, config: GrpoConfig, likelihood: ActionLikelihood) -> None:
        super().__init__(model)
        self._grpo, self._likelihood = config.grpo, likelihood
        self.sums = torch.zeros(3, dtype=torch.float64)
        """Of the actions since it was set to zero: clipped ones, negative log-probability of text, divergence."""

    def forward(self, micro_batch: RolloutBatch, step: RolloutStep) -> tuple[Tensor, Tensor]:
        now = self._likelihood.of(self.model, micro_batch)
        before = micro_batch.before or ActionLogs(*(each.detach() for each in now))
        advantages = micro_batch.advantages
        of_text, clipped_text = self._gains(now.text, before.text, advantages[micro_batch.row])
        of_thoughts, clipped_thoughts = self._gains(now.thoughts, before.thoughts, advantages[:, None])
        total = -(of_text.mean(0).sum() + of_thoughts.sum())
        divergence = total.new_zeros(())
        if micro_batch.reference is not None:
            divergence = self._likelihood.divergence(now, micro_batch.reference)
            total = total + self._grpo.kl_weight * divergence
        clipped = clipped_text[-1].sum() + clipped_thoughts.sum()
        self.sums = self.sums.to(total.device) + torch.stack((clipped, -now.text[-1].sum(), divergence)).detach()
        return total / step.num_targets, total.detach()

    def _gains(self, now: Tensor, before: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """What actions gain, and which of them are clipped, from their log-probabilities now and when they were drawn,
        and advantages of their shape."""
        grpo, ratio = self._grpo, (now - before).exp()
        held = ratio.clamp(1 - grpo.clip, 1 + (grpo.clip if grpo.clip_high is None else grpo.clip_high))
        free, bound = ratio * advantages, held * advantages
        return torch.minimum(free, bound), (bound < free).float()
