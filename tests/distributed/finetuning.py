"""Whole fine-tuning runs that the ranks of the pool make: the real trainer under the real DeepSpeed, on a handful of
tiny examples."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import deepspeed.comm.comm
import deepspeed.utils.groups
import torch
import torch.distributed as dist

from finetune.config import FinetuneConfig, check_layout
from finetune.engine.engine import FinetuneStepResult
from finetune.run.origin import resolve_origin
from finetune.run.session import open_session
from finetune.trainer import FinetuneTrainer
from pretrain.parallel.groups import make_groups
from pretrain.run.signals import StopSignal
from tests.distributed.training import Interruption, interrupt

SYMBOLS = "symbols:ABCDEFGHIJKLMNOPQabcdefghijklmnopqrstuvwxyz0123456789YZ,?="
_UNTOUCHED = {
    name: value
    for name, value in vars(deepspeed.utils.groups).items()
    if value is None or isinstance(value, (dict, int))
}


def finetune(config: FinetuneConfig, interruption: Interruption | None = None) -> tuple[int, list[FinetuneStepResult]]:
    """Run the trainer to its end, or until the interruption; returns its exit code and the results of its steps."""
    forget_world()
    torch.use_deterministic_algorithms(False)
    groups = make_groups(config.parallel, torch.device("cpu"))
    results: list[FinetuneStepResult] = []
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignal())
        layout = check_layout(config, dist.get_world_size())
        origin = resolve_origin(config)
        session = stack.enter_context(open_session(config, layout, groups, origin, signals))
        trainer = FinetuneTrainer(config, origin, session)
        step = trainer.engine.train_step

        def keep(*args: Any, **kwargs: Any) -> FinetuneStepResult:
            results.append(step(*args, **kwargs))
            return results[-1]

        trainer.engine.train_step = keep
        if interruption is not None and interruption.rank == dist.get_rank():
            interrupt(trainer, interruption)
        return trainer.run(), results


def forget_world() -> None:
    """DeepSpeed keeps its world and groups in globals; a case of the pool has a world of its own."""
    deepspeed.comm.comm.cdb = None
    vars(deepspeed.utils.groups).update(_UNTOUCHED)


TASK: dict[str, Any] = {
    "task": "prosqa_symbolic", "parameters": {"num_nodes": 10, "min_hops": 2, "max_hops": 3},
}  # fmt: skip
"""What is fine-tuned on."""


def finetune_config(root: Path, name: str, **changes: dict[str, Any]) -> FinetuneConfig:
    """A run of six epochs of three steps each; the last step of an epoch is not full."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"name": name, "root": str(root / "runs")},
        "model": {
            "vocab_size": 72, "hidden_size": 16, "num_attention_heads": 4, "ffn_size": 24, "num_loop_layers": 1,
            "num_loops": 2, "num_prelude_layers": 1, "tied_head": True,
        },
        "data": {
            "tokenizer": SYMBOLS, "train": {**TASK, "num_examples": 22}, "validation": {**TASK, "num_examples": 7},
            "test": {**TASK, "num_examples": 5},
        },
        "curriculum": {
            "num_stages": 2, "first_stage_epochs": 1, "epochs_per_stage": 1, "thoughts_per_step": 2,
            "tokens_per_stage": 8, "uniform_prob": 0.5,
        },
        "train": {"epochs": 4, "effective_batch": 8, "micro_batch": 2, "seq_len": 96, "deterministic": True},
        "optimizer": {"lr": 1e-2},
        "validation": {"batch": 3, "max_new_tokens": 6},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip
    for section, values in changes.items():
        if section == "checkpoint" and "init_from" in values:
            del sections["model"], sections["data"]["tokenizer"]
        sections.setdefault(section, {}).update(values)
    return FinetuneConfig.model_validate(sections)
