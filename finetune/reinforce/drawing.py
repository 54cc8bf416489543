"""The answers of a step: to which questions, drawn, rewarded, and held against the others of their group."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from finetune.answers.scoring import is_right
from finetune.examples.examples import ExampleSet
from finetune.latent.generation import AnswerSettings
from finetune.reinforce.config import GrpoConfig
from finetune.reinforce.rollout import Rollout, roll_out
from finetune.reinforce.rows import rollout_flops, update_flops
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.gpt import LoopedGPT

SMALLEST_DEVIATION = 1e-6
"""Added to the deviation of a group's rewards."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over answers; those of disjoint answers add up."""

    actions: float
    """That have a probability: tokens of text, and thoughts that learn as they do."""
    tokens: float
    """Positions of the rows."""
    flops: float
    """Of drawing and learning."""
    reward: float
    """Of the groups' means."""
    square: float
    """Of their squares."""
    mixed: float
    """Groups with right and wrong answers."""
    text: float
    """Tokens without eos."""
    ended: float
    """Answers that eos ended."""
    thoughts: float

    @property
    def text_actions(self) -> float:
        """Tokens with eos."""
        return self.text + self.ended

    def numbers(self) -> list[float]:
        return list(asdict(self).values())

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """Of `numbers`, perhaps summed over ranks."""
        return cls(**dict(zip(cls.__dataclass_fields__, numbers, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The answers of a step on this rank."""

    rollouts: list[Rollout]
    advantages: list[float]
    """Of each."""
    totals: Totals


class Drawer:
    """Draws the answers of a replica's share of the questions."""

    def __init__(
        self, config: GrpoConfig, questions: ExampleSet, settings: AnswerSettings, tokenizer: Tokenizer,
        replica: int, num_replicas: int,
    ) -> None:  # fmt: skip
        self._config, self._questions, self._settings, self._tokenizer = config, questions, settings, tokenizer
        self._replica, self._num_replicas = replica, num_replicas
        count, wanted = len(questions.examples), config.rollout.questions
        if count < wanted:
            raise ValueError(
                f"rollout.questions={wanted} are more than the {count} of data.train: raise data.train.num_examples "
                "or lower it"
            )

    def draw(self, model: LoopedGPT, step: int) -> Drawn:
        """The answers of a step, counted from 0."""
        config, settings, size = self._config, self._settings, self._config.rollout.group_size
        numbers = self.own_questions(step)
        keys = [f"grpo/{config.run.seed}/{step}/{number}/{member}" for number in numbers for member in range(size)]
        prompts = [settings.markers.prompt(self._questions.encoded[number].question) for number in numbers]
        rollouts = roll_out(model, [prompt for prompt in prompts for _ in range(size)], keys, settings, config.rollout)
        rewards = [self._reward(numbers[place // size], rollout) for place, rollout in enumerate(rollouts)]
        groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
        means = [sum(group) / size for group in groups]
        flops = rollout_flops(model.config, settings, rollouts)
        totals = Totals(
            actions=self._num_actions(rollouts),
            tokens=sum(len(each.prompt) + settings.num_slots + len(each.answer.text) for each in rollouts),
            flops=flops + update_flops(model.config, config, settings, rollouts),
            reward=sum(means),
            square=sum(mean**2 for mean in means),
            mixed=sum(0 < mean < 1 for mean in means),
            text=sum(len(rollout.answer.text) for rollout in rollouts),
            ended=sum(rollout.answer.is_over for rollout in rollouts),
            thoughts=sum(len(rollout.thoughts) for rollout in rollouts),
        )
        advantages = [earned for group in groups for earned in advantages_of(group, config.grpo.advantage)]
        return Drawn(rollouts=rollouts, advantages=advantages, totals=totals)

    def _num_actions(self, rollouts: Sequence[Rollout]) -> int:
        """Tokens of text, eos included, and thoughts, if these are actions."""
        are_actions = self._config.grpo.thoughts == "likelihood"
        return sum(len(each.answer.text) + each.answer.is_over + are_actions * len(each.thoughts) for each in rollouts)

    def own_questions(self, step: int) -> list[int]:
        """Numbers of this replica's questions of a step: an epoch is a permutation of all, drawn from (seed, epoch)."""
        wanted, count = self._config.rollout.questions, len(self._questions.examples)
        own = wanted // self._num_replicas
        first = step * wanted + self._replica * own
        found: list[int] = []
        for epoch in range(first // count, (first + own - 1) // count + 1):
            seeds = np.random.SeedSequence((self._config.run.seed, epoch))
            order = np.random.Generator(np.random.Philox(seeds)).permutation(count)
            found += order[max(0, first - epoch * count) : max(0, first + own - epoch * count)].tolist()
        return found

    def _reward(self, number: int, rollout: Rollout) -> float:
        """1 for the exact answer, which the task's solver gave, else 0."""
        text = self._tokenizer.decode(rollout.answer.text)
        return float(is_right(text, self._questions.examples[number].answer, self._questions.form))


def advantages_of(rewards: Sequence[float], kind: str) -> list[float]:
    """What each answer of a group earned beyond the group's mean; "normalised": in deviations of the group."""
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    scale = deviation + SMALLEST_DEVIATION if kind == "normalised" else 1.0
    return [(reward - mean) / scale for reward in rewards]
