"""The logit lens over the loops of a text: after each loop, the tokens that the model would say next."""

from typing import Any

import torch

from pretrain.serve.bodies import LensBody, RequestError, ServedModel

MOST_TOKENS = 256
"""Of a text; the states of all of its tokens are kept after every loop."""


def lens(served: ServedModel, body: LensBody) -> dict[str, Any]:
    """For every token of a text and every loop count the likeliest next tokens, each with its probability.

    Raises:
        RequestError: the text has too many tokens or none, or the loop count is not offered.
    """
    model, tokenizer = served.model, served.tokenizer
    most = body.num_loops or model.config.num_loops
    served.require_loops(most)
    tokens = served.encode(body.prompt)
    if not 0 < len(tokens) <= min(MOST_TOKENS, served.max_length):
        raise RequestError(f"{len(tokens)} tokens: the lens takes 1 to {min(MOST_TOKENS, served.max_length)}")
    if not 0 <= min(tokens) <= max(tokens) < tokenizer.vocab_size:
        raise RequestError(f"token ids {min(tokens)} to {max(tokens)}, the vocabulary has {tokenizer.vocab_size}")
    texts: dict[int, str] = {}

    def text(token: int) -> str:
        return texts.setdefault(token, tokenizer.decode([token]))

    rows, loops = torch.tensor([tokens], device=next(model.parameters()).device), []
    with torch.inference_mode():
        context, num_passes = model.context(rows), model.config.num_passes(most)
        for number, states in enumerate(model.passes(rows, num_passes, context), start=1):
            logits = model.all_logits(model.finish(states, context, number))[:, : tokenizer.vocab_size]
            found = logits.float().softmax(-1).topk(min(body.top, tokenizer.vocab_size))
            loops.append(
                [
                    [[text(token), round(value, 4)] for token, value in zip(ids, values, strict=True)]
                    for ids, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
                ]
            )
    return {"tokens": [text(token) for token in tokens], "loops": loops}
