"""What is chosen when vLLM starts, and what it cannot hold. No vLLM here.

`--hf-overrides` takes, as JSON, beside the fields of config.json:

    num_loops        L of every request: loops are part of the graph and of the cache, so they are fixed at launch
    loop_keys        which loop's keys and values a loop attends to: own, first or every (`model.loop.keys`), another
                     policy than the model was trained with: a smaller cache, and another result
    loop_keys_every  loops that share, with every
"""

from typing import Any

from pretrain.hf.modeling_looped_gpt import PLAIN_LOOP, LoopedGPTConfig, loop_design
from pretrain.model.loop.variant import PerLoop

POLICIES = ("own", "first", "every")


class ServedConfig(LoopedGPTConfig):
    """The configuration of an export with its key/value heads as a number, which vLLM reads of it."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        heads = config_dict.get("num_key_value_heads") or config_dict["num_attention_heads"]
        return super().from_dict(config_dict | {"num_key_value_heads": heads}, **kwargs)


def launched(config: LoopedGPTConfig) -> LoopedGPTConfig:
    """The configuration with the choices of the launch in it, checked.

    Raises:
        ValueError: one of them, or the configuration, is invalid.
    """
    if not isinstance(config.num_loops, int) or isinstance(config.num_loops, bool) or config.num_loops < 1:
        raise ValueError(f"num_loops={config.num_loops!r} in --hf-overrides: the loop block is applied once or more")
    loop = dict(PLAIN_LOOP | (config.loop or {}))
    keys = getattr(config, "loop_keys", loop["keys"])
    every = getattr(config, "loop_keys_every", loop["keys_every"])
    if keys not in POLICIES:
        raise ValueError(f"loop_keys={keys!r} in --hf-overrides: one of {', '.join(POLICIES)}")
    if not isinstance(every, int) or every < 2:
        raise ValueError(f"loop_keys_every={every!r} in --hf-overrides: 2 or more loops share keys and values")
    config.loop = loop | {"keys": keys, "keys_every": every}
    config.check()
    return config


def require_held(config: LoopedGPTConfig, *, tensor: int, pipeline: int, is_quantised: bool) -> None:
    """Raise a ValueError that says what of a launched configuration vLLM cannot hold.

    Args:
        config: of the model.
        tensor: ranks that share a layer.
        pipeline: ranks that share the layers.
        is_quantised: whether weights are to be quantised.
    """
    design = loop_design(config)
    if design.has_windows:
        raise ValueError("model.loop.keys_window is not held in vLLM: a gate mixes two attentions there; keys=own is")
    if pipeline > 1:
        raise ValueError(
            f"--pipeline-parallel-size {pipeline}: a token returns to the first layer of the loop, a pipeline of vLLM "
            "is passed once; use --tensor-parallel-size"
        )
    if is_quantised:
        raise ValueError("--quantization is not held for looped models: leave it out")
    if tensor == 1:
        return
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    if heads % tensor or kv_heads % tensor:
        raise ValueError(f"--tensor-parallel-size {tensor} does not divide {heads} heads and {kv_heads} of keys")
    if config.qk_norm == "all":
        raise ValueError(f"--tensor-parallel-size {tensor}: qk_norm=all norms all heads together; use 1")
    if type(design.per_loop).linear is not PerLoop.linear:
        name = (config.loop or {})["per_loop"]
        raise ValueError(f"--tensor-parallel-size {tensor}: per_loop={name} changes matrices that are split; use 1")


def entries_of(config: LoopedGPTConfig) -> dict[str, list[list[int]]]:
    """By part (prelude, loop, coda) and layer, the numbers of the caches that it fills, as `LoopedGPTForCausalLM`
    counts them: in the order of application, those that compute no keys left out."""
    design, counts = loop_design(config), (config.num_prelude_layers, config.num_loop_layers, config.num_coda_layers)
    passes = [loop for loop in range(config.num_loops) if design.keys_of(loop) == loop]
    before, each, after = counts
    return {
        "prelude": [[number] for number in range(before)],
        "loop": [[before + each * place + number for place in range(len(passes))] for number in range(each)],
        "coda": [[before + each * len(passes) + number] for number in range(after)],
    }
