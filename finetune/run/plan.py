"""The dry run of fine-tuning: what a configuration does on a number of ranks, computed with no process group or GPU."""

import os

from finetune.config import FinetuneConfig, check_layout
from finetune.method.curriculum import cut_at, stage_at
from finetune.run.start import start_of
from pretrain.config.read import resolved_yaml
from pretrain.model.count import count_parameters
from pretrain.run.directory import run_directory


def render_plan(config: FinetuneConfig, world_size: int | None) -> str:
    """The resolved configuration, the ledger of the effective batch, the model, and what epochs of each stage train on.

    Args:
        config: of the run.
        world_size: ranks. Default: what the launcher says, else one replica.

    Raises:
        ValueError: the configuration does not fit the ranks, the run it starts from or the tokenizer.
        OSError: a file cannot be read.
    """
    said = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or str(config.engine.tensor)
    layout = check_layout(config, world_size or int(said))
    start = start_of(config)
    model = start.run.model
    parameters = count_parameters(model, start.run.train.seq_len).total
    origin = f"weights of {config.checkpoint.init_from}" if start.weights is not None else "random weights"
    lines = [
        resolved_yaml(config),
        layout.ledger(config),
        f"ranks: {layout.world_size} = tensor {config.engine.tensor} x data {layout.data_parallel}, "
        f"ZeRO stage {config.engine.zero_stage}",
        f"model: {parameters:,} parameters, {model.num_loops} loops, {model.effective_depth()} layers deep, {origin}",
        *_stage_lines(config),
        f"run directory  {run_directory(config.run)}",
    ]
    return "\n".join(lines)


def _stage_lines(config: FinetuneConfig) -> list[str]:
    """A line for each stage: its epochs, and what becomes of a long chain."""
    method, curriculum = config.chosen_method, config.curriculum
    stages = [stage_at(curriculum, method, epoch) for epoch in range(config.train.epochs)]
    unit = f"{method.removal}s"
    what = {"none": "slots", "thought": "thoughts", "pause": "pauses"}[method.slots]
    lines = []
    for stage in dict.fromkeys(stages):
        first, last = stages.index(stage), len(stages) - 1 - stages[::-1].index(stage)
        cut = cut_at(curriculum, method, stage, 10**6)
        removed = "the whole chain" if cut.removed == 10**6 else f"{cut.removed} {unit}" if cut.removed else "nothing"
        lines.append(f"epochs {first:3d} to {last:3d}: stage {stage}, {removed} removed, {cut.num_slots} {what}")
    return lines
