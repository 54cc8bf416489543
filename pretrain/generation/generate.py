"""Generating text: prompts of any lengths in one batch, at any loop count or with tokens that stop on their own, each
row as if it were alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from pretrain.generation.engine import Continuation, GenerationEngine, Wish
from pretrain.generation.packing import packed_weights
from pretrain.generation.sampling import Generation, check_prompts
from pretrain.generation.slots import SlotCache
from pretrain.generation.stepper import PassStepper, Stepper
from pretrain.model.gpt import LoopedGPT

MakeStepper = Callable[[int, int, int | None], Stepper]
"""From sequences at once, positions of each, and loops, the most of all three."""


def generate(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    row_numbers: Sequence[int] | None = None,
    is_over: Callable[[list[int]], bool] = lambda _: False,
    track: Callable[[Iterator[int]], Iterable[int]] = iter,
    batch: int | None = None,
    make_stepper: MakeStepper | None = None,
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        model: on its device, in its precision; or this rank's stage of it.
        prompts: token ids of each row, at least one.
        settings: how.
        row_numbers: numbers of the rows in the whole job, for their draws; 0, 1, ... by default.
        is_over: asked of a row's new tokens after each one; True ends the row.
        track: wraps the iterator of new tokens; to show progress.
        batch: rows that run at once; others join as these end. Default: all.
        make_stepper: of a model that is spread over ranks. Default: `PassStepper`.

    Returns:
        The new token ids of each row, without the end-of-sequence token.

    Raises:
        ValueError: a prompt is empty or outside the vocabulary, or the rows outgrow the model's table of positions.
    """
    assert settings.max_new_tokens > 0
    # the last new token is never an input
    check_prompts(model, prompts, settings.vocab_size, settings.max_new_tokens - 1)
    wishes = [
        Wish(prompt=prompt, settings=settings, row_number=number, is_over=is_over)
        for number, prompt in zip(row_numbers or range(len(prompts)), prompts, strict=True)
    ]
    return [each.tokens for each in fulfil(model, wishes, track=track, batch=batch, make_stepper=make_stepper)]


def fulfil(
    model: LoopedGPT,
    wishes: Sequence[Wish],
    *,
    track: Callable[[Iterator[int]], Iterable[int]] = iter,
    batch: int | None = None,
    make_stepper: MakeStepper | None = None,
) -> list[Continuation]:
    """Generate what is wished for; arguments as of `generate`. Sequences with the most passes ahead join first, so that
    few are left alone at the end, and those in the same loops run side by side."""
    if not wishes:
        return []
    num_slots, capacity = min(batch or len(wishes), len(wishes)), max(wish.length for wish in wishes)
    loops = [wish.settings.num_loops or model.config.num_loops for wish in wishes]

    def plain(num_slots: int, capacity: int, num_loops: int | None) -> Stepper:
        cache = SlotCache(model.config, num_slots=num_slots, capacity=capacity, num_loops=num_loops)
        return PassStepper(model, cache)

    most = max(loops) if model.config.num_blocks == 1 else None
    device = next(model.parameters()).device
    with packed_weights(model, num_slots * max(wish.most for wish in wishes)):
        stepper = (make_stepper or plain)(num_slots, capacity, most)
        engine = GenerationEngine(stepper, num_slots=num_slots, device=device)
        order = sorted(range(len(wishes)), key=lambda row: -loops[row] * wishes[row].num_steps)
        continuations = {row: engine.add(wishes[row]) for row in order}
        for _ in track(_new_tokens(engine)):
            pass
    return [continuations[row] for row in range(len(wishes))]


def _new_tokens(engine: GenerationEngine) -> Iterator[int]:
    """Take steps until all is done; each new token."""
    while not engine.is_idle:
        for continuation in engine.step():
            if continuation.tokens:
                yield continuation.tokens[-1]


def count_loops(continuations: Sequence[Continuation]) -> int:
    """Loops that the new tokens took together; of a row that ended at once those of its end."""
    return sum(sum(each.loops[: max(len(each.tokens), 1)]) for each in continuations)
