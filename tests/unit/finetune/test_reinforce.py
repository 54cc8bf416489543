"""Reinforcement learning on answers against its definitions: probabilities, gradients of the expected reward, draws."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from finetune.config import FinetuneConfig
from finetune.examples.examples import EncodedExample, ExampleSet, TextForm
from finetune.latent.generation import Answer, AnswerSettings
from finetune.latent.sequential import Sequential
from finetune.latent.thinking import Tokens
from finetune.method.markers import Markers
from finetune.reinforce.batch import ActionLogs, RolloutBatch, RolloutStep, collate
from finetune.reinforce.config import GrpoConfig, check_layout
from finetune.reinforce.drawing import Drawer, advantages_of
from finetune.reinforce.objective import ActionLikelihood, GrpoObjective
from finetune.reinforce.policy import policy_of
from finetune.reinforce.rollout import Rollout, roll_out
from pretrain.data.tokenizers.symbols import SymbolTokenizer, write_symbols
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.tasks.task import Example

VOCAB, EOS, BOT, EOT, LATENT = 7, 3, 4, 5, 6
MARKERS = Markers((BOT,), LATENT, (EOT,))
TASK = {"task": "p_hop", "parameters": {"num_hops": 1, "length": 8}, "num_examples": 16}


def configured(**sections: Any) -> GrpoConfig:
    base: dict[str, Any] = {
        "data": {"train": TASK, "validation": TASK}, "checkpoint": {"init_from": "runs/x"},
        "rollout": {"questions": 4, "group_size": 8}, "train": {"micro_batch": 8},
    }  # fmt: skip
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return GrpoConfig.model_validate(base)


def how(num_slots: int = 0, **changes: Any) -> AnswerSettings:
    base: dict[str, Any] = {
        "max_new_tokens": 2, "vocab_size": VOCAB, "eos_id": EOS, "num_slots": num_slots,
        "markers": MARKERS if num_slots else Markers(), "thinking": Sequential() if num_slots else Tokens(),
    }  # fmt: skip
    return AnswerSettings(**(base | changes))


def tiny(hidden_size: int = 4, **changes: Any) -> LoopedGPT:
    shape: dict[str, Any] = {
        "vocab_size": 8, "hidden_size": hidden_size, "num_attention_heads": 1, "ffn_size": 8, "num_loop_layers": 1,
        "num_loops": 2, "init_std": 0.7,
    }  # fmt: skip
    model = LoopedGPT(ModelSection.model_validate(shape | changes), 32).double()
    initialise(model, seed=1)
    return model


def last_states(model: LoopedGPT, inputs: Tensor) -> Tensor:
    """States [b, d] after inputs [b, s, d], by a whole pass without cache."""
    states = model(torch.zeros(inputs.shape[:2], dtype=torch.int64), embeddings=inputs)
    return states.view(*inputs.shape)[:, -1]


def next_logs(model: LoopedGPT, inputs: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [b, v] of the next token, <eot> left out."""
    logits = model.all_logits(last_states(model, inputs))[:, :VOCAB].clone()
    logits[:, EOT] = -torch.inf
    return (logits / temperature).log_softmax(-1)


def embed(model: LoopedGPT, *tokens: int) -> Tensor:
    assert model.embedding is not None
    return model.embedding(torch.tensor([tokens]))


def directional(function: Callable[[], Tensor], model: LoopedGPT, along: Sequence[Tensor]) -> float:
    """Central difference of a function of the weights."""
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, direction in zip(model.parameters(), along, strict=True):
                weight += sign * 1e-5 * direction
            found.append(float(function()))
            for weight, direction in zip(model.parameters(), along, strict=True):
                weight -= sign * 1e-5 * direction
    return (found[0] - found[1]) / 2e-5


def gradient_along(
    model: LoopedGPT, config: GrpoConfig, settings: AnswerSettings, batch: RolloutBatch, along: Sequence[Tensor]
) -> float:
    """What the objective's gradient says of it: the objective is the negative of what is to grow."""
    model.zero_grad()
    share, _ = GrpoObjective(model, config, ActionLikelihood(config, settings))(
        batch, RolloutStep(micro_batches=(batch,), num_targets=1)
    )
    share.backward()
    return -sum(float((w.grad * d).sum()) for w, d in zip(model.parameters(), along, strict=True) if w.grad is not None)


def directions(model: LoopedGPT) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in model.parameters()]


def test_the_gradient_of_text_is_that_of_the_expected_reward() -> None:
    """All answers of at most two tokens, each with a reward of its own."""
    model, settings, prompt = tiny(), how(), (1, 2)
    config = configured(rollout={"temperature": 0.7})
    answers = [[], *([token] for token in range(VOCAB) if token != EOS)]  # the empty one: eos at once
    texts = [
        Answer(text=list(text), is_over=is_over)
        for text, is_over in itertools.chain(
            ((text, True) for text in answers),
            ((list(pair), False) for pair in itertools.product([t for t in range(VOCAB) if t != EOS], repeat=2)),
        )
    ]
    reward = {tuple(text.text): 1.0 + 0.3 * number for number, text in enumerate(texts)}

    def expected() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for answer in texts:
            log, tokens = torch.zeros((), dtype=torch.float64), (*answer.text, *([EOS] if answer.is_over else []))
            for place, token in enumerate(tokens):
                row = embed(model, *prompt, *tokens[:place])
                logits = model.all_logits(last_states(model, row))[0, :VOCAB] / 0.7
                log = log + logits.log_softmax(-1)[token]
            total = total + log.exp() * reward[tuple(answer.text)]
        return total

    rollouts = [Rollout(prompt, torch.zeros(0, 4), torch.zeros(0, 4), answer) for answer in texts]
    with torch.no_grad():
        batch = collate(rollouts, [0.0] * len(texts), settings)
        logs = ActionLikelihood(config, settings).of(model, batch).text[-1]
        of_row = torch.zeros(len(texts), dtype=torch.float64).index_add(0, batch.row, logs)
    weights = of_row.exp() * torch.tensor([reward[tuple(answer.text)] for answer in texts], dtype=torch.float64)
    assert float(of_row.exp().sum()) == pytest.approx(1, abs=1e-9)  # no answer is missing
    along = directions(model)
    found = gradient_along(model, config, settings, replace(batch, advantages=weights), along)
    assert found == pytest.approx(directional(expected, model, along), rel=1e-5)


@pytest.mark.parametrize("way", ["likelihood", "pathwise"])
def test_the_gradient_of_thoughts_is_that_of_the_expected_reward(way: str) -> None:
    """One thought in two dimensions, integrated over by Gauss-Hermite quadrature; then one token."""
    model, settings, prompt, noise = tiny(2), how(1, max_new_tokens=1), (1, 2, BOT), 0.15
    config = configured(rollout={"thought_noise": noise}, grpo={"thoughts": way})
    points, weights = np.polynomial.hermite.hermgauss(40)
    grid = torch.tensor([(a, b) for a in points for b in points]) * math.sqrt(2) * noise  # [n, 2]
    weight = torch.tensor([a * b for a in weights for b in weights]) / math.pi
    rewards = torch.tensor([0.0, 1.0, 0.3, 0.2, 2.0, 0.0, 0.5], dtype=torch.float64)

    def logs_after(thoughts: Tensor) -> Tensor:
        before = embed(model, *prompt).expand(len(thoughts), -1, -1)
        return next_logs(
            model, torch.cat((before, thoughts[:, None], embed(model, EOT).expand(len(thoughts), -1, -1)), 1)
        )

    def expected() -> Tensor:
        thoughts = last_states(model, embed(model, *prompt)) + grid
        return (weight[:, None] * logs_after(thoughts).exp() * rewards).sum()

    with torch.no_grad():
        thoughts = last_states(model, embed(model, *prompt)) + grid
        chance = logs_after(thoughts).exp()
    tokens = [token for token in range(VOCAB) if token != EOT]
    rollouts, advantages = [], []
    for node, token in itertools.product(range(len(grid)), tokens):
        answer = Answer(text=[] if token == EOS else [token], num_thoughts=1, is_over=token == EOS)
        rollouts.append(Rollout(prompt, thoughts[node : node + 1], grid[node : node + 1], answer))
        advantages.append(float(weight[node] * chance[node, token] * rewards[token]))
    batch = collate(rollouts, advantages, settings)
    batch = replace(batch, advantages=torch.tensor(advantages, dtype=torch.float64))
    along = directions(model)
    found = gradient_along(model, config, settings, batch, along)
    assert found == pytest.approx(directional(expected, model, along), rel=1e-5)


@pytest.mark.parametrize("num_slots", [0, 3])
def test_probabilities_are_those_that_answers_were_drawn_with(num_slots: int) -> None:
    model, settings = tiny(8), how(num_slots, max_new_tokens=5)
    noise = 0.2 if num_slots else 0.0
    config = configured(rollout={"temperature": 1.3, "thought_noise": noise}, grpo={"thoughts": "likelihood"})
    tail = (BOT,) * bool(num_slots)
    prompts = [(1, 2, *tail), (2, *tail), (0, 1, 2, 1, *tail)] * 4
    keys = [f"k{number}" for number in range(len(prompts))]
    rollouts = roll_out(model, prompts, keys, settings, config.rollout)
    assert any(rollout.answer.is_over for rollout in rollouts) and any(len(r.answer.text) > 1 for r in rollouts)
    logs = ActionLikelihood(config, settings).of(model, collate(rollouts, [0.0] * len(rollouts), settings))
    wanted: list[float] = []
    with torch.no_grad():
        for number, (prompt, thoughts, _, answer) in enumerate(rollouts):
            inputs = embed(model, *prompt)
            for place, thought in enumerate(thoughts):
                mean = last_states(model, inputs)
                away = (thought - mean).square().sum()
                torch.testing.assert_close(logs.thoughts[number, place], -away / (2 * 0.2**2))
                torch.testing.assert_close(logs.means[number, place], mean[0])
                inputs = torch.cat((inputs, thought[None, None]), dim=1)
            inputs = torch.cat((inputs, embed(model, *settings.script)), dim=1) if settings.script else inputs
            for token in (*answer.text, *([EOS] if answer.is_over else [])):
                row = model.all_logits(last_states(model, inputs))[:, :VOCAB].clone()
                row[:, list(settings.markers.after)] = -torch.inf
                wanted.append(float((row / 1.3).log_softmax(-1)[0, token]))
                inputs = torch.cat((inputs, embed(model, token)), dim=1)
    torch.testing.assert_close(logs.text[0], torch.tensor(wanted, dtype=torch.float64))
    anew = configured(rollout={"temperature": 1.3, "thought_noise": noise}, grpo={"thoughts": "pathwise"})
    again = ActionLikelihood(anew, settings).of(model, collate(rollouts, [0.0] * len(rollouts), settings))
    torch.testing.assert_close(again.text, logs.text)
    assert again.thoughts.shape[1] == 0


def test_draws_depend_on_the_key_alone_and_follow_the_distribution() -> None:
    model, settings = tiny(8), how(2, max_new_tokens=1)
    config = configured(rollout={"thought_noise": 0.5})
    keys, prompt = [f"k{number}" for number in range(2000)], (1, 2, BOT)
    together = roll_out(model, [prompt] * 2000, keys, settings, config.rollout)
    alone = roll_out(model, [prompt], keys[7:8], settings, config.rollout)
    assert alone[0].answer == together[7].answer
    torch.testing.assert_close(alone[0].thoughts, together[7].thoughts)
    with torch.no_grad():
        first = last_states(model, embed(model, *prompt))
    noise = torch.stack([(rollout.thoughts[0] - first[0]) / 0.5 for rollout in together])
    assert abs(float(noise.mean())) < 4 / math.sqrt(noise.numel())
    assert abs(float(noise.var()) - 1) < 4 * math.sqrt(2 / noise.numel())
    assert not torch.equal(together[0].thoughts[0], together[1].thoughts[0])
    plain = roll_out(model, [(1, 2)] * 2000, keys, how(max_new_tokens=1), configured().rollout)
    drawn = [EOS if rollout.answer.is_over else rollout.answer.text[0] for rollout in plain]
    with torch.no_grad():
        chance = model.all_logits(last_states(model, embed(model, 1, 2)))[0, :VOCAB].softmax(-1)
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCAB)
    away = float(((counts - 2000 * chance) ** 2 / (2000 * chance)).sum())
    assert away < 22.5  # chi-square of 6 degrees of freedom: one in a thousand is above


def test_every_loop_is_rewarded_as_if_it_had_drawn_the_answer() -> None:
    model, settings = tiny(num_loops=3), how()
    config, last = configured(grpo={"over": "every"}), configured()
    rollouts = roll_out(model, [(1, 2), (2, 2, 1)], ["a", "b"], settings, config.rollout)
    batch = collate(rollouts, [1.0, -1.0], settings)
    logs = ActionLikelihood(config, settings).of(model, batch).text
    assert len(logs) == 3
    for loop in range(3):
        alone = ActionLikelihood(last, replace(settings, num_loops=loop + 1)).of(model, batch).text
        torch.testing.assert_close(logs[loop], alone[0])
    step = RolloutStep(micro_batches=(batch,), num_targets=1)
    share, _ = GrpoObjective(model, config, ActionLikelihood(config, settings))(batch, step)
    assert share.item() == pytest.approx(-float(batch.advantages[batch.row].sum()))  # all ratios are 1


def test_clipping_and_divergence_are_those_of_their_formulas() -> None:
    model, settings = tiny(), how(2)
    config = configured(
        rollout={"thought_noise": 0.3}, grpo={"clip": 0.1, "clip_high": 0.4, "kl_weight": 0.5, "thoughts": "likelihood"}
    )
    rollouts = roll_out(model, [(1, 2, BOT), (2, BOT)], ["a", "b"], settings, config.rollout)
    batch = collate(rollouts, [2.0, -1.0], settings)
    likelihood = ActionLikelihood(config, settings)
    with torch.no_grad():
        now = likelihood.of(model, batch)
        shift = torch.linspace(-0.6, 0.6, now.text.shape[1], dtype=torch.float64)
        before = ActionLogs(now.text - shift, now.thoughts - torch.tensor([[0.5, -0.5], [0.5, -0.5]]), now.means)
        reference = ActionLogs(now.text + 0.3 * shift, now.thoughts, now.means + 0.1)
    batch = replace(batch, before=before, reference=reference)
    objective = GrpoObjective(model, config, likelihood)
    share, _ = objective(batch, RolloutStep(micro_batches=(batch,), num_targets=10))
    wanted, clipped = 0.0, 0
    for moved, row in zip((*shift, 0.5, -0.5, 0.5, -0.5), (*batch.row.tolist(), 0, 0, 1, 1), strict=True):
        ratio, advantage = math.exp(moved), (2.0, -1.0)[row]
        held = min(max(ratio, 0.9), 1.4)
        wanted -= min(ratio * advantage, held * advantage)
        clipped += held * advantage < ratio * advantage
    for moved in shift.tolist():
        wanted += 0.5 * (math.exp(0.3 * moved) - 0.3 * moved - 1)
    wanted += 0.5 * 4 * 4 * 0.1**2 / (2 * 0.3**2)  # four thoughts of four numbers
    assert share.item() == pytest.approx(wanted / 10)
    assert float(objective.sums[0]) == clipped > 0


@pytest.mark.parametrize(
    ("kind", "rewards", "wanted"),
    [
        ("normalised", [1.0, 0.0, 0.0, 0.0], [3**0.5, *[-(3**-0.5)] * 3]),
        ("centred", [1.0, 0.0, 0.0, 0.0], [0.75, -0.25, -0.25, -0.25]),
        ("normalised", [1.0] * 3, [0.0] * 3),  # nothing to learn from
    ],
)
def test_advantages(kind: str, rewards: list[float], wanted: list[float]) -> None:
    assert advantages_of(rewards, kind) == pytest.approx(wanted, abs=1e-5)


def test_replicas_share_the_questions_and_an_epoch_has_each_once() -> None:
    tokenizer = SymbolTokenizer(write_symbols("ab"))
    example, encoded = Example("a", (), "b"), EncodedExample((4,), (), (5, 1))
    questions = ExampleSet(examples=[example] * 10, encoded=[encoded] * 10, form=TextForm())
    config = configured()
    drawer = partial(Drawer, config, questions, how(), tokenizer)
    whole = [drawer(0, 1).own_questions(step) for step in range(5)]
    for step, numbers in enumerate(whole):
        assert drawer(0, 2).own_questions(step) + drawer(1, 2).own_questions(step) == numbers
    flat = [number for numbers in whole for number in numbers]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    with pytest.raises(ValueError, match=r"rollout\.questions=4 are more than the 3 of data\.train"):
        Drawer(config, questions.part(0, 3), how(), tokenizer, 0, 1)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"checkpoint": {"init_from": None}}, "checkpoint.init_from"),
        ({"data": {"train": {}}}, "data.train and data.validation"),
        ({"rollout": {"group_size": 1}}, "group_size"),
        ({"grpo": {"clip": 0.3, "clip_high": 0.2}}, "clip_high=0.2 is below"),
        ({"train": {"micro_batch": 7}}, "is not divisible by train.micro_batch=7"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_their_name(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        configured(**sections)


def test_a_question_stays_on_one_rank() -> None:
    config = configured(rollout={"questions": 3, "group_size": 8}, train={"micro_batch": 4})
    with pytest.raises(ValueError, match=r"rollout\.questions=3 is not divisible by data-parallel size=2"):
        check_layout(config, 2)
    assert check_layout(config, 1).micro_batches == 6


def fine_tuned(name: str, **method: Any) -> FinetuneConfig:
    task = {"task": "prosqa_symbolic", "num_examples": 2}
    sections = {"data": {"train": task, "validation": task}, "checkpoint": {"init_from": "runs/y"}}
    return FinetuneConfig.model_validate(
        {**sections, "method": {"name": name, **method}, "curriculum": {"num_stages": 2}}
    )


@pytest.mark.parametrize(
    ("answering", "noise", "words"),
    [
        (fine_tuned("coconut"), 0.0, "rollout.thought_noise=0: latent thoughts need noise"),
        (fine_tuned("cot"), 0.1, "runs/x has no latent thoughts"),
        (None, 0.1, "runs/x has no latent thoughts"),
        (fine_tuned("lotus"), 0.1, "refines its thoughts together"),
        (fine_tuned("coconut", jacobi_passes=1), 0.1, "refines its thoughts together"),
        (fine_tuned("coconut", stop="classifier"), 0.1, "ends its thoughts by a classifier"),
    ],
)
def test_ways_of_reasoning_without_probabilities_are_refused(
    answering: FinetuneConfig | None, noise: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        policy_of(configured(rollout={"thought_noise": noise}), answering)


def test_a_run_answers_as_the_one_it_starts_from() -> None:
    policy = policy_of(configured(rollout={"thought_noise": 0.1, "max_new_tokens": 9}), fine_tuned("sim_cot"))
    assert (policy.method.name, policy.curriculum.num_stages, policy.validation.max_new_tokens) == ("sim_cot", 2, 9)
    assert policy_of(configured(), None).method.name == "no_cot"
