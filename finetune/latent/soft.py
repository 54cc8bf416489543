"""Soft Thinking: a thought is the mixture of all tokens' embeddings that the model expects next (Zhang et al. 2025,
arXiv 2505.15778). Needs no training: for answering with a model that was fine-tuned to reason in text (`cot`).

    p = softmax(logits),   thought = Σ_v p_v · e_v        e_v the embedding of token v

A row's thoughts end where the model would begin the answer (its likeliest token is the first of the answer's mark), or
after `patience` thoughts in a row at which it was sure: entropy of p below `threshold` nats ("cold stop"; off by
default, as a model of few symbols is sure at most places). Then the mark is forced, and the answer is written in
tokens. No noise is added and no token left out of the mixture (the published code keeps the 10 to 30 likeliest).

With β the input is that of Mixture of Inputs (Zhuang et al. 2025, arXiv 2505.14827, as its code has it),
where y is the likeliest token and H the entropy of p divided by that of equal chances:

    thought = H · Σ_v (p_v + β · [v = y]) / (1 + β) · e_v + (1 - H) · e_y
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.latent.decoding import Decoding
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import PassCount, Thoughts


@dataclass(frozen=True, kw_only=True)
class SoftThinking:
    vocab_size: int
    """Tokens of the tokenizer; further rows of the model have no part."""
    end: int
    """First token of the answer's mark."""
    beta: float | None = None
    """β of Mixture of Inputs. Default: Soft Thinking."""
    threshold: float = 0.0
    """Entropy in nats below which the model is sure; 0: never."""
    patience: int = 3
    """Thoughts in a row at which it is sure, after which the row ends."""

    def mix(self, decoding: Decoding, logits: Tensor) -> tuple[Tensor, Tensor]:
        """From the logits [b, v] of the next token the thought [b, 1, d], and the entropy [b] of their softmax."""
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
        entropy = torch.special.entr(probabilities).sum(dim=-1)
        weights = probabilities
        if self.beta is not None:
            likeliest = torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1])
            share = entropy[:, None] / math.log(logits.shape[-1])
            weights = share * (probabilities + self.beta * likeliest) / (1 + self.beta) + (1 - share) * likeliest
        embeddings = decoding.embed(torch.arange(self.vocab_size, device=logits.device))  # [v, d]
        return (weights.to(embeddings.dtype) @ embeddings)[:, None], entropy

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        assert stop is None, "it ends by itself"
        state = decoding.feed_prompts()[:, -1]
        counts = torch.zeros(len(state), dtype=torch.int64, device=state.device)
        is_open, num_sure, thoughts = counts == 0, counts, state[:, None, :][:, :0]
        for _ in range(num_slots):
            logits = decoding.model.all_logits(state)[:, : self.vocab_size]
            thought, entropy = self.mix(decoding, logits)
            num_sure = torch.where(entropy < self.threshold, num_sure + 1, 0)
            is_open = is_open & (logits.argmax(dim=-1) != self.end) & (num_sure < self.patience)
            if not is_open.any():
                break
            counts = counts + is_open
            thoughts = torch.cat((thoughts, thought), dim=1)
            state = decoding.feed(thought)[:, -1]
        decoding.forget(thoughts.shape[1] - counts)
        return Thoughts(thoughts, counts.tolist(), thoughts[:, :0])

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        """A thought is two products with a matrix of the vocabulary's size, of logits and of the mixture; a row that
        ends by itself has logits more."""
        return PassCount([num_prompt, *[1] * num_thoughts], 0, [], 2 * num_thoughts + (num_thoughts < num_slots))
