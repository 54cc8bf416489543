"""Forward FLOPs of answering a question, from the passes that generation makes (`finetune/latent/generation.py`).

Every pass over n positions that look at s keys costs n · depth · layer(s), where depth counts each loop, and every look
at the vocabulary one head (`pretrain/model/count.py`, which says what is counted). It is the cost of the question
alone: padding of a batch, and positions that a row computes after it has ended, are not counted. The classifier of
thoughts, a product of d numbers, is left out.
"""

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
    count = settings.way.passes(num_prompt_tokens, settings.num_slots, answer.num_thoughts, is_stopped=is_stopped)
    outside, per_key = layer_flops(model, 0), layer_flops(model, 1) - layer_flops(model, 0)
    layer, num_keys = sum(positions * (outside + per_key * keys) for positions, keys in count.tried), 0
    num_written = len(answer.text) - (not answer.is_over)  # the last token goes through the model only before eos
    for positions in (*count.fed, count.pending + len(settings.script), *[1] * num_written):
        num_keys += positions
        layer += positions * (outside + per_key * num_keys)
    num_heads = len(answer.text) + answer.is_over
    return model.effective_depth(settings.num_loops) * layer + num_heads * head_flops(model)
