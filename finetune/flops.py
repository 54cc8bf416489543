"""Forward FLOPs of answering a question, from the passes that generation makes (`finetune/generation.py`); no torch.

Every pass over n positions that look at s keys costs n · depth · layer(s), where depth counts each loop, and every look at the vocabulary
one head (`pretrain/model/count.py`, which says what is counted). It is the cost of the question alone: padding of a batch, and positions
that a row computes after it has ended, are the batch's affair. The classifier of thoughts, a product of d numbers, is left out.
"""

from collections.abc import Iterator

from finetune.generation import Answer, AnswerSettings
from pretrain.model.config import ModelSection
from pretrain.model.count import head_flops, layer_flops


def answer_flops(model: ModelSection, num_prompt_tokens: int, settings: AnswerSettings, answer: Answer, *, is_stopped: bool = False) -> int:
    """Forward FLOPs of one answer.

    Args:
        model: shape of the model.
        num_prompt_tokens: length of the question, <bot> included.
        settings: that the answer was given with.
        answer: what came out.
        is_stopped: whether a classifier ended its thoughts.
    """
    outside, per_key = layer_flops(model, 0), layer_flops(model, 1) - layer_flops(model, 0)
    layer = sum(positions * (outside + per_key * keys) for positions, keys in _passes(num_prompt_tokens, settings, answer, is_stopped))
    # A classifier reads the state after every thought, and the head with it; so does the head at the state before the first.
    num_heads = len(answer.text) + answer.is_over + (is_stopped and answer.num_thoughts > 0) * (answer.num_thoughts + 1)
    return model.effective_depth(settings.num_loops) * layer + num_heads * head_flops(model)


def _passes(length: int, settings: AnswerSettings, answer: Answer, is_stopped: bool) -> Iterator[tuple[int, int]]:
    """Positions, and keys that they look at, of each pass; `length` is the row's so far."""
    script = len(settings.script)
    if answer.num_thoughts == 0:
        length += script
        yield length, length
    else:
        yield length, length
        alone = answer.num_thoughts if is_stopped else answer.num_thoughts - 1
        if settings.jacobi_passes is not None:
            for _ in range(min(settings.jacobi_passes, alone)):
                yield alone, length + alone
            alone = 0
        for _ in range(alone):
            length += 1
            yield 1, length
        last = answer.num_thoughts - alone + script
        length += last
        yield last, length
    for _ in range(len(answer.text) - (not answer.is_over)):
        length += 1
        yield 1, length
