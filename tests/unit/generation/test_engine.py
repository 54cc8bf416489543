"""Sequences that join, leave and stand in different loops, against one plain pass over each for every new token."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pretrain.generation import slots
from pretrain.generation.engine import GenerationEngine, Wish
from pretrain.generation.generate import fulfil
from pretrain.generation.packing import packed_weights
from pretrain.generation.sampling import Generation
from pretrain.generation.slots import SlotCache
from pretrain.generation.stepper import PassStepper
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop.exit_rules import ExitRule
from tests.support.loop_designs import MODELS
from tests.unit.model.test_model import LLAMA, build

PROMPTS = ([1, 5, 7, 2], [3], [4, 4, 9, 8, 6, 1, 2], [11, 10], [5] * 9)
LOOPS = (3, 1, 2, 4, 2)
CPU = torch.device("cpu")


def looped(**fields: Any) -> LoopedGPT:
    return build(LLAMA, num_prelude_layers=1, num_coda_layers=1, num_loops=3, **fields)


def settings(num_new: int, num_loops: int | None = None, **how: Any) -> Generation:
    return Generation(max_new_tokens=num_new, vocab_size=LLAMA.vocab_size, num_loops=num_loops, **how)


def engine_of(model: LoopedGPT, num_slots: int, num_loops: int | None = None) -> GenerationEngine:
    cache = SlotCache(model.config, num_slots=num_slots, capacity=32, num_loops=num_loops)
    return GenerationEngine(PassStepper(model, cache), num_slots=num_slots, device=CPU)


@torch.no_grad()
def plainly(model: LoopedGPT, prompt: Sequence[int], num_new: int, num_loops: int | None) -> list[int]:
    """The likeliest tokens, by a pass over the whole text for each."""
    tokens = list(prompt)
    for _ in range(num_new):
        logits = model.logits(model(torch.tensor([tokens]), num_loops))[-1, : LLAMA.vocab_size]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_is_what_it_is_alone_and_without_a_cache(name: str) -> None:
    """Every design of the loop; five sequences of other lengths and loop counts in two slots, joining as others end."""
    model = looped(**MODELS[name])
    wishes = [
        Wish(prompt=prompt, settings=settings(3 + row % 3, num_loops))
        for row, (prompt, num_loops) in enumerate(zip(PROMPTS, LOOPS, strict=True))
    ]
    wanted = [plainly(model, wish.prompt, wish.most, wish.settings.num_loops) for wish in wishes]
    assert [each.tokens for each in fulfil(model, wishes, batch=2)] == wanted
    assert [fulfil(model, [wish])[0].tokens for wish in wishes] == wanted


def test_blocks_with_weights_of_their_own_are_passes_too() -> None:
    model = build(LLAMA, num_loop_layers=4, loop_regulariser={"block_size": 2, "weight": 1.0})
    wishes = [Wish(prompt=prompt, settings=settings(3 + row % 3)) for row, prompt in enumerate(PROMPTS)]
    found = [each.tokens for each in fulfil(model, wishes, batch=2)]
    assert found == [plainly(model, wish.prompt, wish.most, None) for wish in wishes]


def test_rows_in_different_loops_share_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One application of the block for rows in all loops, and no row waits for another's loops."""
    model, calls = looped(loop={"injection": "add"}), []
    run_loop = model.run_loop
    monkeypatch.setattr(model, "run_loop", lambda states, *rest: calls.append(rest[-1]) or run_loop(states, *rest))
    wishes = [Wish(prompt=[3 + row], settings=settings(6 // loops, loops)) for row, loops in enumerate((1, 2, 3))]
    fulfil(model, wishes)
    assert calls == [0, (0, 1, 1), (0, 0, 2), (0, 0, 1), (0, 0, 1), (0, 1, 2)]


def test_who_has_most_ahead_of_it_joins_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no row is left to itself: nine tokens of one loop, and one of nine, take nine passes in two slots."""
    model, calls = looped(), []
    run_loop = model.run_loop
    monkeypatch.setattr(model, "run_loop", lambda states, *rest: calls.append(len(states)) or run_loop(states, *rest))
    wishes = [Wish(prompt=[3 + row], settings=settings(3, 1)) for row in range(3)]
    wishes.append(Wish(prompt=[9], settings=settings(1, 9)))
    found = fulfil(model, wishes, batch=2)
    assert calls == [2] * 9
    assert [each.tokens for each in found] == [
        plainly(model, wish.prompt, wish.most, wish.settings.num_loops) for wish in wishes
    ]


def test_sequences_join_and_leave_between_steps() -> None:
    model = looped()
    engine = engine_of(model, num_slots=2)
    first = engine.add(Wish(prompt=PROMPTS[0], settings=settings(8)))
    dropped = engine.add(Wish(prompt=PROMPTS[1], settings=settings(8)))
    waiting = engine.add(Wish(prompt=PROMPTS[2], settings=settings(4)))
    gone = engine.add(Wish(prompt=PROMPTS[3], settings=settings(4)))
    for _ in range(6):  # two tokens of three loops each
        engine.step()
    assert (engine.num_open, engine.num_waiting, len(dropped.tokens)) == (2, 2, 2)
    engine.cancel(dropped)
    engine.cancel(gone)
    assert (engine.num_open, engine.num_waiting) == (1, 1)
    while not engine.is_idle:
        engine.step()
    assert first.tokens == plainly(model, PROMPTS[0], 8, None) and waiting.tokens == plainly(model, PROMPTS[2], 4, None)
    assert [each.reason for each in (first, dropped, waiting, gone)] == ["length", "cancelled", "length", "cancelled"]
    assert dropped.tokens == plainly(model, PROMPTS[1], 2, None) and gone.tokens == []


def test_the_newest_sequence_leaving_moves_nobody_and_an_older_one_moves_the_newest() -> None:
    """Cancelled in the middle of its loops, with rules that remember their rows."""
    model = looped(loop={"injection": "gated", "exit": "gate"})
    rules = [ExitRule(name=name, threshold=threshold) for name, threshold in (("kl", 0.05), ("gate", 0.8))]
    wishes = [Wish(prompt=PROMPTS[row], settings=settings(6, 4, rule=rules[row % 2])) for row in range(4)]
    alone = [fulfil(model, [wish])[0] for wish in wishes]
    for leaving in range(4):
        engine = engine_of(model, num_slots=4, num_loops=4)
        rows = [engine.add(wish) for wish in wishes]
        for _ in range(5):
            engine.step()
        engine.cancel(rows[leaving])
        while not engine.is_idle:
            engine.step()
        for number, (row, wanted) in enumerate(zip(rows, alone, strict=True)):
            if number != leaving:
                assert (row.tokens, row.loops) == (wanted.tokens, wanted.loops)


@pytest.mark.parametrize("dense", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("keys", ["own", "first"])
def test_rows_attend_together_where_their_keys_lie_or_one_by_one(
    monkeypatch: pytest.MonkeyPatch, keys: str, dense: float
) -> None:
    """On a CPU. Rows in loops of their own have their keys together only where all loops read the same ones."""
    model, alone = looped(loop={"keys": keys}), []
    monkeypatch.setattr(slots, "DENSE", dense)
    attend_each = SlotCache._attend_each
    monkeypatch.setattr(SlotCache, "_attend_each", lambda *given: alone.append(given[3]) or attend_each(*given))
    wishes = [
        Wish(prompt=prompt, settings=settings(12 + row, loops))
        for row, (prompt, loops) in enumerate(zip(PROMPTS, LOOPS, strict=True))
    ]
    wanted = [plainly(model, wish.prompt, wish.most, wish.settings.num_loops) for wish in wishes]
    assert [each.tokens for each in fulfil(model, wishes, batch=4)] == wanted
    in_loops = [loop for loop in alone if isinstance(loop, tuple)]
    assert bool(in_loops) == (keys == "own" or dense > 0.0)
    assert all(len(set(loop)) > 1 for loop in in_loops) or dense > 0.0


@pytest.mark.parametrize("keys", ["share", "compute"])
def test_rules_and_fixed_counts_stand_side_by_side(keys: Any) -> None:
    model = looped(loop={"injection": "gated", "exit": "gate"})
    rules = (None, ExitRule(name="change", threshold=0.45), ExitRule(name="entropy", threshold=3.6), None)
    wishes = [
        Wish(prompt=prompt, settings=settings(6, loops, rule=rule, keys=keys))
        for prompt, loops, rule in zip(PROMPTS, (4, 4, 3, 2), rules, strict=False)
    ]
    together = fulfil(model, wishes, batch=3)
    for wish, found in zip(wishes, together, strict=True):
        (alone,) = fulfil(model, [wish])
        assert (found.tokens, found.loops) == (alone.tokens, alone.loops)
    assert len(Counter(loops for each in together for loops in each.loops)) > 2


@torch.no_grad()
def test_thoughts_are_steps_like_any_other() -> None:
    """Against a plain model whose inputs are put together by hand, beside a row without thoughts."""
    model = looped(loop={"injection": "add"})
    wishes = [
        Wish(prompt=[1, 5, 7], settings=settings(4, 2), num_thoughts=3, script=(9, 8), never=(9,)),
        Wish(prompt=[4, 4], settings=settings(5, 3)),
    ]
    thinking, plain = fulfil(model, wishes)
    assert model.embedding is not None
    inputs, found = model.embedding(torch.tensor([[1, 5, 7]])), []
    for _ in range(3):
        states = model(torch.zeros(inputs.shape[:2], dtype=torch.int64), 2, embeddings=inputs)
        inputs = torch.cat((inputs, states[None, -1:]), dim=1)
    inputs = torch.cat((inputs, model.embedding(torch.tensor([[9, 8]]))), dim=1)
    for _ in range(4):
        states = model(torch.zeros(inputs.shape[:2], dtype=torch.int64), 2, embeddings=inputs)
        logits = model.logits(states)[-1, : LLAMA.vocab_size]
        logits[9] = -torch.inf
        found.append(int(logits.argmax()))
        inputs = torch.cat((inputs, model.embedding(torch.tensor([found[-1:]]))), dim=1)
    assert thinking.tokens == found and plain.tokens == plainly(model, [4, 4], 5, 3)


@torch.no_grad()
def test_likelihoods_are_those_of_the_text() -> None:
    model = looped()
    forced = Wish(prompt=[1, 5], settings=settings(1, 2), forced=[7, 3, 2], wants_likelihood=True)
    chosen = Wish(prompt=[3], settings=settings(3), wants_likelihood=True)
    for each, num_loops in zip(fulfil(model, [forced, chosen]), (2, 3), strict=True):
        text = [*each.wish.prompt, *each.tokens]
        logits = model.logits(model(torch.tensor([text[:-1]]), num_loops))[-3:].log_softmax(-1)
        assert each.log_probabilities == pytest.approx(
            [float(row[t]) for row, t in zip(logits, each.tokens, strict=True)]
        )
        assert each.are_likeliest == (logits.argmax(-1) == torch.tensor(each.tokens)).tolist()
    assert each.are_likeliest == [True] * 3


@torch.no_grad()
def test_packed_weights_compute_the_same_and_are_gone_afterwards() -> None:
    model = looped(bias="all").float()
    tokens = torch.tensor([PROMPTS[2]])
    plain = model(tokens)
    with packed_weights(model), packed_weights(model):
        assert model.get_submodule("loop.0.ffn.up").packed is not None
        packed = model(tokens)
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)
    model.get_parameter("loop.0.ffn.up.weight").mul_(2)
    assert not torch.allclose(model(tokens), plain)
