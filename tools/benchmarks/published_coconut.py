"""Coconut as published, on transformers' GPT-2: the reference of `tools/benchmarks/coconut.py`.

Written from the description of the algorithm (Hao et al. 2024, arXiv 2412.06769) and of its released code:

- training: n + 1 passes with a cache of keys and values, keeping all hidden states, with logits of the whole vocabulary
  at every position; after each pass the input embeddings are split into one vector per position, the thoughts are
  inserted, and the vectors are stacked again;
- generation: one example at a time; the thoughts as in training, then text without a cache, recomputing the whole
  sequence for every token.

The released code used caches of tuples of tensors; here the cache is `DynamicCache`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GPT2LMHeadModel

from pretrain.data.stream.labels import IGNORED


class PublishedCoconut:
    """Training loss and generation; slots of thoughts hold the token `latent_id`."""

    def __init__(self, model: GPT2LMHeadModel, latent_id: int, eos_id: int) -> None:
        self.model, self.latent_id, self.eos_id = model, latent_id, eos_id

    def loss(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log-likelihood of the labels that are not IGNORED.

        Args:
            tokens: [b, s]; the slots of all rows begin at the same position.
            attention_mask: [b, s], 0 at padding.
            positions: [b, s], position of each token in its row.
            labels: [b, s], each at the position of its own token, not shifted.
        """
        logits, _ = self.think(tokens, attention_mask, positions)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)

    def think(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, s, v] of all positions, and the input embeddings [b, s, d] with the thoughts inserted."""
        slots = [(row == self.latent_id).nonzero().flatten().tolist() for row in tokens]
        num_passes = max(map(len, slots))
        length = tokens.shape[1]
        stop = min((places[0] for places in slots if places), default=length)
        embeddings, cache, start = self.model.transformer.wte(tokens), DynamicCache(), 0
        all_logits, all_states = [], []
        for number in range(num_passes + 1):
            output = self.model(
                inputs_embeds=embeddings[:, start:stop], attention_mask=attention_mask[:, :stop],
                position_ids=positions[:, start:stop], past_key_values=cache, output_hidden_states=True, use_cache=True,
            )  # fmt: skip
            all_logits.append(output.logits)
            all_states.append(output.hidden_states)
            if number == num_passes:
                break
            vectors = [[embeddings[row, place] for place in range(length)] for row in range(len(tokens))]
            for row, places in enumerate(slots):
                if len(places) > number:
                    vectors[row][places[number]] = output.hidden_states[-1][row, places[number] - 1 - start]
            embeddings = torch.stack([torch.stack(row) for row in vectors])
            start, stop = stop, stop + 1 if number + 1 < num_passes else length
        return torch.cat(all_logits, dim=1), embeddings

    @torch.no_grad()
    def generate(self, prompt: list[int], max_new_tokens: int) -> list[int]:
        """Greedy continuation, without eos, of a prompt that includes its slots and `<eot>`."""
        tokens = torch.tensor([prompt])
        positions = torch.arange(len(prompt))[None]
        logits, embeddings = self.think(tokens, torch.ones_like(tokens), positions)
        new = [int(logits[0, -1].argmax())]
        while new[-1] != self.eos_id and len(new) < max_new_tokens:
            embeddings = torch.cat((embeddings, self.model.transformer.wte(torch.tensor([new[-1:]]))), dim=1)
            new.append(int(self.model(inputs_embeds=embeddings).logits[0, -1].argmax()))
        return new[:-1] if new[-1] == self.eos_id else new
