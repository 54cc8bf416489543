"""The check of a conversion: compares logits of transformers and of our model on random tokens.

Both run in fp32 with the weights as stored in the folder, so rounding of the weights does not affect the comparison.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf.loop_formats.table import format_of
from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig, LoopedGPTForCausalLM
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT

TOLERANCE = 1e-5
"""Largest allowed difference of logits, relative to the larger of 1 and the largest logit."""
_BATCH, _LENGTH = 2, 64
TEXTS = ("KING HENRY. Once more unto the breach,\n", "x = 12345\n\n\tdef f():", "naïve \U0001f642 \u2581 你好", "")


class WrongConversion(ValueError):  # noqa: N818 - reads as what it reports
    """What was written is not what was read: a fault of ours, not of the input."""


def load_published(folder: Path, model_type: str) -> Any:
    """Load the model of a folder with transformers in fp32; code in the folder is not run, no objects are unpickled."""
    from transformers import AutoModelForCausalLM

    kind = LoopedGPTForCausalLM if model_type == LoopedGPTConfig.model_type else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False).eval()


def build(model: ModelSection, seq_len: int, weight: Callable[[str], Tensor]) -> LoopedGPT:
    """Build our model in fp32; `weight` returns the tensor of a name."""
    with torch.device("meta"):
        ours = LoopedGPT(model, seq_len)
    ours = ours.to_empty(device="cpu")
    with torch.no_grad():
        if ours.head is not None and ours.embedding is not None and model.tied_head:
            ours.head.weight = ours.embedding.weight
        for name, parameter in ours.named_parameters():
            parameter.copy_(weight(name))
    return ours.eval()


@torch.no_grad()
def largest_difference(
    ours: LoopedGPT, theirs: Any, seq_len: int, vocab_size: int, *, num_loops: int | None = None
) -> float:
    """Largest difference of logits on random tokens, relative to the larger of 1 and the largest logit.

    Args:
        ours: our model.
        theirs: a causal language model of transformers, or of ours.
        seq_len: longest sequence that both support.
        vocab_size: number of tokens to draw from and to compare logits of.
        num_loops: L of `ours`; `theirs` is unrolled to it or has it as default. Default: the configuration's.
    """
    tokens = torch.randint(vocab_size, (_BATCH, min(_LENGTH, seq_len)), generator=torch.Generator().manual_seed(0))
    mine = ours.logits(ours(tokens, num_loops))[:, :vocab_size]
    if isinstance(theirs, LoopedGPT):
        other = theirs.logits(theirs(tokens))[:, :vocab_size]
    else:
        other = theirs(input_ids=tokens).logits.flatten(0, 1)[:, :vocab_size]
    return ((mine - other).abs().max() / mine.abs().max().clamp_min(1.0)).item()


def require_same_ids(tokenizer: Tokenizer, folder: Path, model_type: str) -> None:
    """Raise a WrongConversion unless the folder's tokenizer, loaded by transformers, gives the ids of `tokenizer`."""
    from transformers import AutoTokenizer, PretrainedConfig

    config: dict[str, Any] = {}
    if model_type == LoopedGPTConfig.model_type:
        config = {"config": LoopedGPTConfig.from_pretrained(folder)}
    elif format_of(model_type) is not None:  # no class of transformers knows this config.json
        config = {"config": PretrainedConfig()}
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **config)
    for text in TEXTS:
        if theirs(text, add_special_tokens=False).input_ids != tokenizer.encode(text):
            kind = type(theirs).__name__
            raise WrongConversion(
                f"the tokenizer that transformers makes of the export ({kind}) gives other ids for {text!r}: "
                "nothing was kept"
            )


def require_equal(difference: float, what: str) -> str:
    """A line that reports the difference of logits; raises a WrongConversion if it exceeds TOLERANCE."""
    if not difference <= TOLERANCE:
        raise WrongConversion(
            f"{what}: logits differ by {difference:.1e}, more than {TOLERANCE:g}: "
            "the conversion is wrong, nothing was kept"
        )
    return f"logits on random tokens differ by at most {difference:.1e} of the largest"
