"""Forward FLOPs of answering a question, from the passes that generation makes (`finetune/latent/generation.py`); no
torch.

Every pass over n positions that look at s keys costs n · depth · layer(s), where depth counts each loop, and every look
at the vocabulary one head (`pretrain/model/count.py`, which says what is counted). It is the cost of the question
alone: padding of a batch, and positions that a row computes after it has ended, are the batch's affair. The classifier
of thoughts, a product of d numbers, is left out.
"""

from collections.abc import Iterator

from finetune.latent.generation import Answer, AnswerSettings
from pretrain.config.model import ModelSection
from pretrain.model.count import head_flops, layer_flops


def answer_flops(
    model: ModelSection, num_prompt_tokens: int, settings: AnswerSettings, answer: Answer, *, is_stopped: bool = False
) -> int:
    """Forward FLOPs of one answer.

    Args:
        model: shape of the model.
        num_prompt_tokens: length of the question, <bot> included.
        settings: that the answer was given with.
        answer: what came out.
        is_stopped: whether a classifier ended its thoughts.
    """
    outside, per_key = layer_flops(model, 0), layer_flops(model, 1) - layer_flops(model, 0)
    layer = sum(
        positions * (outside + per_key * keys)
        for positions, keys in _passes(num_prompt_tokens, settings, answer, is_stopped)
    )
    num_heads = len(answer.text) + answer.is_over
    if is_stopped and settings.jacobi_passes is None and answer.num_thoughts:
        num_heads += answer.num_thoughts + 1  # rows may think or write, so the head is asked in every pass
    return model.effective_depth(settings.num_loops) * layer + num_heads * head_flops(model)


def _passes(length: int, settings: AnswerSettings, answer: Answer, is_stopped: bool) -> Iterator[tuple[int, int]]:
    """Positions, and keys that they look at, of each pass; `length` is that of the prompt."""
    script = len(settings.script)
    if answer.num_thoughts == 0:
        together = [length + script]
    elif settings.jacobi_passes is None:
        alone = answer.num_thoughts if is_stopped else answer.num_thoughts - 1
        together = [length, *[1] * alone, answer.num_thoughts - alone + script]
    else:
        slots = settings.num_thoughts  # whatever number a classifier leaves of them
        yield from [(slots - 1, length + slots - 1)] * min(settings.jacobi_passes, slots - 1)
        together = [length, slots, script] if is_stopped else [length, slots + script]
    length = 0
    for positions in (*together, *[1] * (len(answer.text) - (not answer.is_over))):
        length += positions
        yield positions, length
