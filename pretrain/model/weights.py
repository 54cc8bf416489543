"""Every weight of the model, described once and without torch: name, shape, split, initial value, decay, gradient.

The modules are built from these descriptions, and whoever treats weights differently reads them here: initial values
(`pretrain/model/initialise.py`), counts (`count.py`), weight decay (`pretrain/optim/make.py`), the sums of gradients
over tensor-parallel ranks (`pretrain/parallel/engine.py`), checkpoints and the memory plan. A new weight is one line
here and one in the module that uses it; a model whose parameters are not those described here is refused when it is
built (`check_parameters`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pretrain.config.model import ModelSection
from pretrain.model.loop.recurrence import WHOLE, Recurrence, Stage

Init = Literal["normal", "residual", "ones", "zeros"]
PartialUnder = Literal["never", "tensor", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter tensor."""

    shape: tuple[int, ...]
    """Logical shape, before tensor parallelism."""
    split: int | None
    """Dimension that is cut into equal parts for the tensor-parallel ranks, or None: every rank holds all of it."""
    init: Init
    """Normal with model.init_std; the same over sqrt(2 · effective depth), for projections into the residual stream;
    ones; zeros."""
    decays: bool
    """Whether weight decay pulls it towards zero."""
    partial_under: PartialUnder
    """When a rank's gradient is only a part, to be summed over the tensor-parallel ranks. "tensor": a weight that every
    rank holds and uses behind `Modules.enter`, so each sees its own heads or columns. "sequence": one that is used
    between the split regions, where under sequence parallelism each rank sees its own tokens. "never": a split weight,
    or one used before the tokens are cut."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def held_shape(self, num_ranks: int) -> tuple[int, ...]:
        """Shape of the part that one of `num_ranks` tensor-parallel ranks holds."""
        return tuple(size // num_ranks if dim == self.split else size for dim, size in enumerate(self.shape))


Weights: TypeAlias = Mapping[str, Weight]
"""Weights by name: the path inside their module, as in the state dict."""


def under(weights: Weights, name: str) -> dict[str, Weight]:
    """The weights of one module, by their path inside it."""
    prefix = f"{name}."
    return {path.removeprefix(prefix): weight for path, weight in weights.items() if path.startswith(prefix)}


def stage_weights(model: ModelSection, seq_len: int, stage: Stage = WHOLE) -> dict[str, Weight]:
    """Every weight that a pipeline stage holds, by its name in the whole model.

    A tied head is the embedding itself where one stage holds both, and then not listed.
    """
    parts = embedding_weights(model, seq_len) | injection_weights(model) if stage.is_first else {}
    if stage.is_last:
        parts |= final_weights(model)
    if stage.is_first:
        for copy in aliases(model):
            parts.pop(copy, None)
    layer = layer_weights(model)
    for part, numbers in Recurrence(config=model, stage=stage).layers().items():
        parts |= {f"{part}.{number}.{name}": weight for number in numbers for name, weight in layer.items()}
    return parts


def aliases(model: ModelSection) -> dict[str, str]:
    """Names that are second names of another weight: copy -> original. The last of several pipeline stages holds a copy
    of a tied embedding as its head; it is drawn, counted and stored as the embedding."""
    return {"head.weight": "embedding.weight"} if model.tied_head else {}


def embedding_weights(model: ModelSection, seq_len: int) -> dict[str, Weight]:
    """The token table and, if positions are learned, theirs: `seq_len` rows, added before the tokens are cut."""
    token_table = Weight(
        shape=(model.vocab_size, model.hidden_size), split=0, init="normal", decays=True, partial_under="never"
    )
    position_table = Weight(
        shape=(seq_len, model.hidden_size), split=None, init="normal", decays=False, partial_under="never"
    )
    tables = {"rope": {}, "learned": {"position_embedding.weight": position_table}}[model.positions]
    return {"embedding.weight": token_table, **tables}


def injection_weights(model: ModelSection) -> dict[str, Weight]:
    """Weights of what re-enters at the start of a loop (`pretrain/model/loop/injection.py`)."""
    return _named({"injection": {"none": {}, "add": {}}[model.input_injection]})


def final_weights(model: ModelSection) -> dict[str, Weight]:
    """The final norm and the head, also if it is tied."""
    return _named({"final_norm": _norm(model), "head": _column(model.hidden_size, model.vocab_size, False)})


def layer_weights(model: ModelSection) -> dict[str, Weight]:
    """Every weight of one transformer layer."""
    width, ffn = model.hidden_size, model.ffn_size
    q_width, kv_width = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    qkv_bias, bias = {"none": (False, False), "qkv": (True, False), "all": (True, True)}[model.bias]
    widths = {"query": q_width, "key": kv_width}
    qk_norms = {
        "none": {},
        "head": {name: _vector(model.head_dim, "ones", "tensor") for name in widths},
        "all": {name: _split_vector(size, "ones") for name, size in widths.items()},
    }[model.qk_norm]
    gates = {"swiglu": {"ffn.gate": _column(width, ffn, bias)}, "gelu": {}}[model.activation]
    return _named(
        {
            "attention_norm": _norm(model),
            "ffn_norm": _norm(model),
            "attention.query": _column(width, q_width, qkv_bias),
            "attention.key": _column(width, kv_width, qkv_bias),
            "attention.value": _column(width, kv_width, qkv_bias),
            "attention.output": _row(q_width, width, bias),
            **gates,
            "ffn.up": _column(width, ffn, bias),
            "ffn.down": _row(ffn, width, bias),
            **{f"attention.{name}_norm": {"weight": weight} for name, weight in qk_norms.items()},
        }
    )


def check_parameters(shapes: Mapping[str, tuple[int, ...]], weights: Weights, num_ranks: int) -> None:
    """Compare the parameters of a model, as one of `num_ranks` tensor-parallel ranks holds them, with their
    descriptions.

    Raises:
        ValueError: a parameter is not described, or not as it was built, or a described one is missing.
    """
    wanted = {name: weight.held_shape(num_ranks) for name, weight in weights.items()}
    for name in [*shapes, *(name for name in wanted if name not in shapes)]:
        if shapes.get(name) != wanted.get(name):
            built, described = shapes.get(name, "missing"), wanted.get(name, "missing")
            raise ValueError(
                f"parameter {name}: built {built}, described {described}; "
                "describe each parameter of the model in pretrain/model/weights.py"
            )


def _named(parts: Mapping[str, Weights]) -> dict[str, Weight]:
    return {f"{part}.{name}": weight for part, weights in parts.items() for name, weight in weights.items()}


def _column(inputs: int, outputs: int, bias: bool) -> Weights:
    """A linear layer [outputs, inputs] whose outputs are split."""
    matrix = Weight(shape=(outputs, inputs), split=0, init="normal", decays=True, partial_under="never")
    return {"weight": matrix, **({"bias": _split_vector(outputs, "zeros")} if bias else {})}


def _row(inputs: int, outputs: int, bias: bool) -> Weights:
    """A linear layer into the residual stream whose inputs are split; its bias is added after the sum over ranks."""
    matrix = Weight(shape=(outputs, inputs), split=1, init="residual", decays=True, partial_under="never")
    return {"weight": matrix, **({"bias": _vector(outputs, "zeros", "sequence")} if bias else {})}


def _norm(model: ModelSection) -> Weights:
    """A norm on the residual stream."""
    scale = {"weight": _vector(model.hidden_size, "ones", "sequence")}
    shift = {"bias": _vector(model.hidden_size, "zeros", "sequence")}
    return {"rms": scale, "layer": scale | shift, "plain": {}}[model.norm]


def _vector(size: int, init: Init, partial_under: PartialUnder) -> Weight:
    return Weight(shape=(size,), split=None, init=init, decays=False, partial_under=partial_under)


def _split_vector(size: int, init: Init) -> Weight:
    return Weight(shape=(size,), split=0, init=init, decays=False, partial_under="never")
