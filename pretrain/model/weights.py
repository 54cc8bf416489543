"""Every weight of the model, described once and without torch (`pretrain/model/weight_kinds.py`), by name.

The modules are built from these descriptions, and all code that treats weights differently reads them here: initial
values (`pretrain/model/initialise.py`), counts (`count.py`), weight decay (`pretrain/optim/make.py`), the sums of
gradients over tensor-parallel ranks (`pretrain/parallel/engine.py`), checkpoints and the memory plan. A new weight is
one line here and one in the module that uses it; those of a variant of the loop are described in its file
(`pretrain/model/loop/`). A model whose parameters are not those described is refused when it is built.
"""

from collections.abc import Mapping
from dataclasses import replace

from pretrain.model.config import ModelSection
from pretrain.model.loop.design import LoopDesign
from pretrain.model.loop.keys import window_weights
from pretrain.model.loop.recurrence import WHOLE, Recurrence, Stage
from pretrain.model.loop.variant import Shape
from pretrain.model.weight_kinds import Weight, Weights, column, inside, row, stream_vector

POST_NORMS = ("attention_post_norm", "ffn_post_norm")
"""Second norms of the halves of a layer, where model.norm_place asks for them."""


def stage_weights(model: ModelSection, seq_len: int, stage: Stage = WHOLE) -> dict[str, Weight]:
    """Every weight that a pipeline stage holds, by its name in the whole model, in the order of a token's way.

    A tied head is the embedding itself where one stage holds both, and then not listed.
    """
    parts: dict[str, Weight] = {}
    if stage.is_first:
        parts |= embedding_weights(model, seq_len) | loop_design(model).weights()
    for part, numbers in Recurrence(config=model, stage=stage).layers().items():
        layer = layer_weights(model, in_loop=part == "loop")
        parts |= inside({f"{part}.{number}": layer for number in numbers})
    if stage.is_last:
        parts |= loop_design(model).exit_weights()
        parts |= inside({"final_norm": norm(model), "head": head_weights(model)})
    return {name: weight for name, weight in parts.items() if aliases(model).get(name) not in parts}


def aliases(model: ModelSection) -> dict[str, str]:
    """Names that are second names of another weight: copy -> original. The last of several pipeline stages holds a copy
    of a tied embedding as its head; it is drawn, counted and stored as the embedding."""
    return {"head.weight": "embedding.weight"} if model.tied_head else {}


def embedding_weights(model: ModelSection, seq_len: int) -> dict[str, Weight]:
    """The token table and, if positions are learned, theirs: `seq_len` rows, added before the tokens are cut."""
    shape = (model.vocab_size, model.hidden_size)
    token_table = Weight(shape=shape, split=0, init="normal", decays=True, is_table=True)
    position_table = Weight(shape=(seq_len, model.hidden_size), init="normal", is_table=True)
    tables = {"rope": {}, "learned": {"position_embedding.weight": position_table}}[model.positions]
    return {"embedding.weight": token_table, **tables}


def head_weights(model: ModelSection) -> Weights:
    """The head, also if it is tied."""
    head = column(model.hidden_size, model.vocab_size)
    return {name: replace(weight, is_table=True) for name, weight in head.items()}


def loop_design(model: ModelSection) -> LoopDesign:
    """What the model does between loops, and inside the layers that it loops over."""
    layer = layer_weights(model)
    linears = {path.removesuffix(".weight"): weight for path, weight in layer.items() if len(weight.shape) == 2}
    num_loops = model.loop.made_for or model.num_loops
    shape = Shape(width=model.hidden_size, num_loops=num_loops, num_layers=model.num_loop_layers, linears=linears)
    return LoopDesign(model.loop, shape)


def norm(model: ModelSection) -> Weights:
    """A norm on the residual stream."""
    scale, shift = (stream_vector(model.hidden_size, init) for init in ("ones", "zeros"))
    return {"rms": {"weight": scale}, "layer": {"weight": scale, "bias": shift}, "plain": {}}[model.norm]


def layer_weights(model: ModelSection, *, in_loop: bool = False) -> dict[str, Weight]:
    """Every weight of one transformer layer; those of the loop block may have more."""
    width, ffn = model.hidden_size, model.ffn_size
    q_width, kv_width = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    qk_bias, value_bias, bias = (model.bias in kinds for kinds in (("qk", "qkv", "all"), ("qkv", "all"), ("all",)))
    widths = {"query": q_width, "key": kv_width}
    of_head = Weight(shape=(model.head_dim,), init="ones", partial_under="tensor")
    qk_norms = {
        "none": {},
        "head": dict.fromkeys(widths, of_head),
        "all": {name: Weight(shape=(size,), split=0, init="ones") for name, size in widths.items()},
    }[model.qk_norm]
    gates = {"swiglu": {"ffn.gate": column(width, ffn, bias)}, "gelu": {}}[model.activation]
    design = loop_design(model) if in_loop else None
    has_windows = design is not None and design.has_windows
    weights = inside(
        {
            "attention_norm": norm(model),
            "ffn_norm": norm(model),
            **(dict.fromkeys(POST_NORMS, norm(model)) if model.norm_place in ("both", "around") else {}),
            "attention.query": column(width, q_width, qk_bias),
            "attention.key": column(width, kv_width, qk_bias),
            "attention.value": column(width, kv_width, value_bias),
            "attention.output": row(q_width, width, bias),
            **gates,
            "ffn.up": column(width, ffn, bias),
            "ffn.down": row(ffn, width, bias),
            **{f"attention.{name}_norm": {"weight": weight} for name, weight in qk_norms.items()},
            "attention.window": window_weights(model.num_attention_heads, model.head_dim) if has_windows else {},
            "per_loop": {} if design is None else design.per_loop.layer_weights(),
            "residual": {} if design is None else design.residual.layer_weights(),
        }
    )
    for name, gain in ({} if design is None else design.first_gains).items():
        matrix = f"{name}.weight"
        weights[matrix] = replace(weights[matrix], init="normal", std=gain * model.init_std)
    return weights


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
