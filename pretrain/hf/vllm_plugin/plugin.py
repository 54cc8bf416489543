"""What vLLM calls when it starts: the entry point `looped` of its group `vllm.general_plugins` (pyproject.toml).

    vllm serve exported/12x2 --hf-overrides '{"num_loops": 4}'

vLLM has an environment of its own, with pins of its own; `pip install --no-deps .` there adds this plug-in, which needs
of the project only what the exported class does. Interfaces are those of vLLM 0.32 and 0.33.
"""

ARCHITECTURE = "LoopedGPTForCausalLM"


def register() -> None:
    """Make vLLM know the configuration and the class; it may be called more than once, in every process of vLLM.

    The class is named, not imported, so that nothing touches a GPU before vLLM forks. As the configuration is known,
    code in the folder of a model is neither needed nor run.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    from pretrain.hf.vllm_plugin.launch import ServedConfig

    AutoConfig.register(ServedConfig.model_type, ServedConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "pretrain.hf.vllm_plugin.model:ServedLoopedGPT")
