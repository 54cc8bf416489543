"""This rank's stage of the model: built of plain or tensor-parallel modules, filled from a checkpoint where nothing is
trained."""

import warnings

import torch

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.run import ParallelSection
from pretrain.config.saved_model import SavedModel
from pretrain.device.hardware import DTYPES
from pretrain.model.config import ModelSection, Recompute
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop.recurrence import Stage
from pretrain.parallel.cpu import use_cpu
from pretrain.parallel.groups import Groups
from pretrain.parallel.megatron import (
    TransformerConfig,
)
from pretrain.parallel.tensor import tensor_parallel_ops


def build_stage(
    model: ModelSection, seq_len: int, megatron: TransformerConfig, groups: Groups, recompute: Recompute = "none"
) -> LoopedGPT:
    """The part of a model that this rank holds, without values."""
    use_cpu()
    ops = tensor_parallel_ops(megatron, groups.tensor)
    stage = Stage(index=groups.pipeline.rank(), count=groups.pipeline.size())
    return LoopedGPT(model, seq_len, ops, stage, recompute)


@torch.no_grad()
def load_stage(saved: SavedModel, parallel: ParallelSection, groups: Groups, reader: CheckpointReader) -> LoopedGPT:
    """The part of a saved model that this rank holds, in the precision it was trained in, whatever layout saved it."""
    dtype = DTYPES[saved.precision]
    megatron = megatron_config(saved.model, parallel, dtype)
    model = build_stage(saved.model, saved.seq_len, megatron, groups).to(groups.device, dtype)
    count, index = groups.tensor.size(), groups.tensor.rank()
    for name, parameter in model.named_parameters():
        dim = model.split_dim(name)
        split = (None, 0, 1) if dim is None else (dim, index, count)
        stored = f"weights/{model.stored_name(name)}"
        parameter.copy_(reader.read(stored, *split, 0, parameter.numel()).view_as(parameter))
    return model.eval()


def megatron_config(
    model: ModelSection, parallel: ParallelSection, dtype: torch.dtype, *, deterministic: bool = False
) -> TransformerConfig:
    """megatron-core's view of model and layout: sizes, dtypes, and everything it could do on its own switched off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformerConfig(
            num_layers=max(model.pass_layers, parallel.pipeline),
            hidden_size=model.hidden_size,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.kv_heads,
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            sequence_parallel=parallel.sequence,
            params_dtype=dtype,
            pipeline_dtype=dtype,
            bf16=dtype == torch.bfloat16,
            use_cpu_initialization=True,
            perform_initialization=False,
            gradient_accumulation_fusion=False,
            calculate_per_token_loss=True,
            deallocate_pipeline_outputs=False,
            deterministic_mode=deterministic,
        )
