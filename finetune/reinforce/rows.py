"""Rows of `metrics.jsonl` of reinforcement learning: a step each, with what tells whether thoughts are still used."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.latent.generation import AnswerSettings, answer_flops
from finetune.reinforce.config import GrpoConfig
from finetune.reinforce.rollout import Rollout
from pretrain.model.config import ModelSection
from pretrain.model.count import body_flops, head_flops
from pretrain.rows.step import StepRow


@dataclass(frozen=True, kw_only=True)
class GrpoRow(StepRow):
    """One step: answers drawn, rewarded and learnt from. `loss` is what is minimised, per action."""

    reward: float
    """Mean of all answers: the share of right ones."""
    reward_stderr: float
    """Its standard error, of the groups."""
    mixed_groups: float
    """Share of the questions whose answers were not all right or all wrong: those that teach."""
    entropy: float
    """Of the text as it was drawn: mean negative log-probability of a token, in nats."""
    divergence: float
    """From the weights that training started from, per action; 0 where they do not pull."""
    clipped: float
    """Share of the actions that gained nothing, as their probability had changed too much."""
    text_tokens: float
    """Mean tokens of an answer's text, without eos."""
    ended: float
    """Share of the answers that eos ended."""
    thoughts_per_example: float
    """Mean number of latent thoughts."""
    latent_share: float
    """Thoughts, of thoughts and tokens: where it falls, the model writes instead of thinking."""
    rollout_s: float
    """Of the step's seconds, those in which answers were drawn."""
    examples_per_s: float
    """Answers a second over all ranks, drawn and learnt from."""

    def describe(self) -> str:
        drawn = f"{self.text_tokens:.1f} tokens" + f", {self.thoughts_per_example:g} thoughts" * (self.latent_share > 0)
        return f"reward {self.reward:.3f}, {drawn}, {self.describe_speed()}{self.describe_skipped()}"


def rollout_flops(model: ModelSection, settings: AnswerSettings, rollouts: Sequence[Rollout]) -> float:
    """Forward FLOPs of drawing answers."""
    return float(sum(answer_flops(model, len(each.prompt), settings, each.answer) for each in rollouts))


def update_flops(
    model: ModelSection, config: GrpoConfig, settings: AnswerSettings, rollouts: Sequence[Rollout]
) -> float:
    """FLOPs of learning from answers: forward and backward in each update, and forward once under the weights before
    them, where there are several, and under those that training started from, where these pull."""
    num_slots, num_script = settings.num_slots, len(settings.script)
    heads = model.num_passes(settings.num_loops) if config.grpo.over == "every" else 1
    total = 0.0
    for prompt, _, _, answer in rollouts:
        drawn = len(answer.text) + answer.is_over
        length = len(prompt) + num_slots + num_script + drawn
        total += length * body_flops(model, length, settings.num_loops) + drawn * heads * head_flops(model)
    updates = config.train.updates
    return total * (3 * updates + (updates > 1) + bool(config.grpo.kl_weight))
