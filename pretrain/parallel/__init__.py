"""How a step is executed on any product of tensor, pipeline and data parallelism; only this knows megatron-core."""

import warnings

# Without Transformer Engine megatron-core warns at import and falls back to torch, which is what we want here; the
# collectives that torch has renamed are its own calls.
warnings.filterwarnings("ignore", message=".*Apex (is|are) not installed")
warnings.filterwarnings(
    "ignore", message=".*torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor). is deprecated"
)
