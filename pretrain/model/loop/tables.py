"""The variants of the loop by name; each has a file of its own. A new one is a line here."""

from collections.abc import Mapping

from pretrain.model.loop.exit.gate import Gate
from pretrain.model.loop.exit.linear import LinearGate
from pretrain.model.loop.final_norm.coda import BeginsCoda
from pretrain.model.loop.final_norm.passes import EndsPasses
from pretrain.model.loop.injection.add import Add
from pretrain.model.loop.injection.concat import Concat
from pretrain.model.loop.injection.diagonal import Diagonal
from pretrain.model.loop.injection.gated import Gated
from pretrain.model.loop.per_loop.adaln import AdaLN
from pretrain.model.loop.per_loop.embedding import LoopEmbedding
from pretrain.model.loop.per_loop.lora import Lora
from pretrain.model.loop.per_loop.norm_scales import NormScales
from pretrain.model.loop.plugins import plugin_variant
from pretrain.model.loop.residual.hyper import Hyper
from pretrain.model.loop.start.noise import Noise
from pretrain.model.loop.start.zeros import Zeros
from pretrain.model.loop.variant import Exit, FinalNorm, Injection, PerLoop, Residual, Start, Variant

INJECTIONS: dict[str, type[Injection]] = {
    "none": Injection, "add": Add, "concat": Concat, "gated": Gated, "diagonal": Diagonal,
}  # fmt: skip
STARTS: dict[str, type[Start]] = {"prelude": Start, "zeros": Zeros, "noise": Noise}
PER_LOOP: dict[str, type[PerLoop]] = {
    "none": PerLoop, "embedding": LoopEmbedding, "norm_scales": NormScales, "lora": Lora, "adaln": AdaLN,
}  # fmt: skip
RESIDUALS: dict[str, type[Residual]] = {"plain": Residual, "hyper": Hyper}
EXITS: dict[str, type[Exit]] = {"none": Exit, "gate": Gate, "linear": LinearGate}
FINAL_NORMS: dict[str, type[FinalNorm]] = {"end": FinalNorm, "passes": EndsPasses, "coda": BeginsCoda}
TABLES: dict[str, Mapping[str, type[Variant]]] = {
    "injection": INJECTIONS, "start": STARTS, "per_loop": PER_LOOP, "residual": RESIDUALS, "exit": EXITS,
    "final_norm": FINAL_NORMS,
}  # fmt: skip


def variant_class(kind: str, name: str) -> type[Variant]:
    """The variant of a kind by its name in a configuration.

    Raises:
        ValueError: it is of a user's file, and cannot be had.
    """
    table = TABLES[kind]
    return table[name] if name in table else plugin_variant(kind, name)
