"""Designs of the loop in which every registered variant appears, for tests of what must hold for all of them."""

from typing import Any, get_args

from pretrain.model.loop.residual_scale import EXPONENTS, ResidualScale
from pretrain.model.loop.tables import EXITS, FINAL_NORMS, INJECTIONS, PER_LOOP, RESIDUALS, STARTS
from tests.support import own_loops

WITH_INPUT = [name for name in INJECTIONS if name != "none"]
DESIGNS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{name: {"injection": name} for name in WITH_INPUT},
    **{start: {"start": start, "injection": "add", "injection_at": "every"} for start in STARTS if start != "prelude"},
    "noise within": {"start": "noise", "injection": "concat", "injection_at": "every", "noise": {"within": 1.5}},
    "first": {"start": "zeros", "injection": "concat", "injection_at": "first"},
    "euler": {"injection": "diagonal", "injection_at": "every", "diagonal": {"hold": "euler"}},
    "free": {"injection": "diagonal", "diagonal": {"drive": "free"}},
    **{scale.replace("_", " "): {"residual_scale": scale} for scale in get_args(ResidualScale) if scale != "one"},
    "keys of the first": {"keys": "first"},
    "window": {"keys": "first", "keys_window": 3, "injection": "add"},
    "keys of every second": {"keys": "every", "injection": "add"},
    **{name: {"per_loop": name} for name in PER_LOOP if name != "none"},
    **{name: {"residual": name} for name in RESIDUALS if name != "plain"},
    "static hyper": {"residual": "hyper", "hyper": {"streams": 3, "dynamic": False}, "injection": "concat"},
    **{name: {"exit": name} for name in EXITS if name != "none"},
    **{f"final norm: {name}": {"final_norm": name} for name in FINAL_NORMS if name != "end"},
    "own": own_loops.LOOP,
}
MODELS: dict[str, dict[str, Any]] = {
    name: {"loop": loop} | ({"norm_place": "sum"} if loop.get("residual_scale") in EXPONENTS else {})
    for name, loop in DESIGNS.items()
}
"""Fields of the model, with what a design needs of the others."""
NEUTRAL = ("norm_scales", "lora", "adaln")
"""Those that begin as the plain loop."""
SAME_LOGITS = ("plain", *(name for name in EXITS if name != "none"))
"""Those that compute what the plain loop does, whatever their weights, at a given loop count."""
