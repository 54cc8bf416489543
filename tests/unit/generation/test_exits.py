"""Tokens that stop looping on their own: each row as if alone, the limits of every rule, and what is refused."""

from dataclasses import replace

import pytest
import torch

from pretrain.eval.exits import ExitScorer
from pretrain.generation.engine import Wish
from pretrain.generation.generate import fulfil, generate
from pretrain.generation.sampling import Generation, LoopKeys
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import KeyValueCache
from pretrain.model.loop.exit_rules import RULES, ExitRule, exit_rule
from tests.support.loop_designs import MODELS
from tests.unit.model.test_loop_variants import shaken
from tests.unit.model.test_model import LLAMA, build

PROMPTS = [[1, 5, 7, 2], [3], [4, 4, 9, 8, 6, 1, 2], [11, 10]]
SETTINGS = Generation(max_new_tokens=8, vocab_size=LLAMA.vocab_size, num_loops=4)
MIDDLE = {"gate": 0.8, "kl": 0.1, "change": 0.45, "entropy": 3.6}
"""Thresholds at which tokens of the model below stop after different loops."""


@pytest.fixture(scope="module", params=[{}, {"keys": "every"}, {"keys": "first", "keys_window": 2}], ids=str)
def model(request: pytest.FixtureRequest) -> LoopedGPT:
    """With keys and values of every loop, of every second, or of the first and a window."""
    loop = {"injection": "gated", "exit": "gate", **request.param}
    built = build(LLAMA, num_prelude_layers=1, num_coda_layers=1, num_loops=4, loop=loop)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        built.exit["direction"].copy_(torch.randn(LLAMA.hidden_size, generator=generator) / 4)
    return built


def run(model: LoopedGPT, name: str, threshold: float, keys: LoopKeys, prompts: list[list[int]]) -> tuple[list, list]:
    """New tokens and loops of each row."""
    settings = replace(SETTINGS, rule=ExitRule(name=name, threshold=threshold), keys=keys)
    found = fulfil(model, [Wish(prompt=prompt, settings=settings) for prompt in prompts])
    return [each.tokens for each in found], [each.loops for each in found]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("keys", ["share", "compute"])
def test_a_row_is_the_same_in_a_batch_and_alone(model: LoopedGPT, name: str, keys: LoopKeys) -> None:
    new, loops = run(model, name, MIDDLE[name], keys, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert run(model, name, MIDDLE[name], keys, [prompt]) == ([new[row]], [loops[row]])
    assert len({count for row in loops for count in row}) > 1


@pytest.mark.parametrize("name", MODELS)
def test_so_it_is_for_every_design_of_the_loop(name: str) -> None:
    """With a threshold at which tokens of the design stop after different loops."""
    model = shaken(name)
    for threshold in (0.2, 0.4, 0.7, 1.0, 1.5):
        new, loops = run(model, "change", threshold, "share", PROMPTS)
        if len({count for row in loops for count in row}) > 1:
            break
    else:
        pytest.fail("all tokens stop after the same loop")
    for row, prompt in enumerate(PROMPTS):
        assert run(model, "change", threshold, "share", [prompt]) == ([new[row]], [loops[row]])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("keys", ["share", "compute"])
def test_a_rule_that_never_stops_is_the_model_with_all_loops(model: LoopedGPT, name: str, keys: LoopKeys) -> None:
    never = 1.0 if name == "gate" else 1e-30
    new, loops = run(model, name, never, keys, PROMPTS)
    assert new == generate(model, PROMPTS, SETTINGS)
    assert {count for row in loops for count in row} == {4}


@pytest.mark.parametrize("keys", ["share", "compute"])
def test_tokens_and_keys_are_those_of_a_token_by_token_reference(model: LoopedGPT, keys: LoopKeys) -> None:
    """One row, a plain cache, and the loops that the rule chose."""
    (new,), (loops,) = run(model, "change", MIDDLE["change"], keys, PROMPTS[:1])
    cache, tokens, chosen = KeyValueCache(), torch.tensor(PROMPTS[:1]), []
    model(tokens[:, :-1], 4, cache=cache)
    tokens = tokens[:, -1:]
    for step, stop in enumerate(loops):
        context = model.context(tokens, cache=cache)
        states, carried = model.begin(tokens, context)
        final = states
        for loop in range(4):
            if loop < stop or keys == "compute":
                states = model.run_loop(model.enter(states, carried, loop), context, loop)
                final = states if loop < stop else final
                continue
            for (_, source), (_, target) in zip(
                model.recurrence.in_loop(loop - 1), model.recurrence.in_loop(loop), strict=True
            ):
                if target.computes_keys:
                    pairs = zip(cache.entries[target.number], cache.entries[source.newest_keys], strict=True)
                    key, value = (torch.cat((old, newest[:, :, -1:]), dim=2) for old, newest in pairs)
                    cache.entries[target.number] = key, value
        logits = model.logits(model.finish(final, context, 4))[-1, : SETTINGS.vocab_size]
        chosen.append(int(logits.argmax()))
        tokens = torch.tensor([[chosen[step]]])
    assert chosen == new and len(set(loops)) > 1


def test_rows_that_have_stopped_cost_nothing(model: LoopedGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that enter the layers of the loop are those that the counts of loops say."""
    seen = []
    run_loop = model.run_loop
    monkeypatch.setattr(model, "run_loop", lambda states, *rest: seen.append(len(states)) or run_loop(states, *rest))
    _, loops = run(model, "change", MIDDLE["change"], "share", PROMPTS)
    num_filled = sum(len(prompt) > 1 for prompt in PROMPTS)
    prompts = 4 * num_filled * (max(map(len, PROMPTS)) - 1)
    assert sum(seen) - prompts == sum(count for row in loops for count in row)


@pytest.mark.parametrize("keys", ["share", "compute"])
@pytest.mark.parametrize("name", ["kl", "entropy"])
def test_a_rule_that_looks_at_the_output_costs_one_pass_of_the_head_a_loop(
    model: LoopedGPT, monkeypatch: pytest.MonkeyPatch, name: str, keys: LoopKeys
) -> None:
    """The token is chosen from the output at which its rule stopped it, and that is not computed again."""
    rows, all_logits = [], model.all_logits
    monkeypatch.setattr(model, "all_logits", lambda states: rows.append(len(states)) or all_logits(states))
    _, loops = run(model, name, MIDDLE[name], keys, PROMPTS)
    assert sum(rows) == sum(count for row in loops for count in row)


@pytest.mark.parametrize("rule", [None, ExitRule(name="change", threshold=1e-30)], ids=["all loops", "never stops"])
def test_a_scorer_token_by_token_is_the_scorer(model: LoopedGPT, rule: ExitRule | None) -> None:
    pairs = [([1, 5, 7], [2, 9]), ([3], [4]), ([4, 4, 9, 8], [6, 1, 2]), ([11, 10], [5])]
    scorer = ExitScorer(model, rule, "share", batch_size=3)
    for (context, continuation), (found,) in zip(pairs, scorer.likelihoods(pairs, (4,)), strict=True):
        logits = model.logits(model(torch.tensor([[*context, *continuation][:-1]]), 4))[-len(continuation) :]
        target = torch.tensor(continuation)
        wanted = logits.log_softmax(-1).gather(-1, target[:, None]).sum().item()
        assert found.log_probability == pytest.approx(wanted)
        assert found.is_greedy == bool((logits.argmax(-1) == target).all())
    assert (scorer.num_tokens, scorer.mean_loops) == (7, 4) and scorer.tokens_per_s > 0


def test_rules_are_read_from_an_option() -> None:
    plain, gated = LLAMA, ModelSection.model_validate(LLAMA.model_dump() | {"loop": {"exit": "gate"}})
    assert exit_rule("auto", plain) == ExitRule(name="kl", threshold=5e-4)
    assert exit_rule("auto:0.02", plain) == ExitRule(name="kl", threshold=0.02)
    assert exit_rule("auto", gated) == ExitRule(name="gate", threshold=0.5)
    assert exit_rule("auto:change:0.1", gated) == ExitRule(name="change", threshold=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "auto:gate",
            r"--num-loops auto:gate: the model has no gate \(model\.loop\.exit=none\); rules without one: kl",
        ),
        ("auto:gat:0.5", "--num-loops auto=gat is not known, did you mean gate"),
        ("auto:kl:x", "needs auto"),
        ("auto:kl:0", "needs a threshold above 0"),
        ("auto:0.1:kl", "needs auto"),
    ],
)
def test_a_wrong_rule_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        exit_rule(text, LLAMA)
    assert "\n" not in str(caught.value)
