"""How the model of a run of reinforcement learning answers: as the run does that it starts from."""

from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from finetune.reinforce.config import GrpoConfig
from finetune.run.finetuned_model import answering_config
from finetune.run.origin import Origin, resolve_origin
from pretrain.checkpoint.run import open_checkpoint


def resolve_policy(config: GrpoConfig) -> tuple[FinetuneConfig, Origin]:
    """How a run answers, as a configuration of fine-tuning with the data of this run, and what it starts from.

    Raises:
        ValueError: there is no such run, its way of reasoning has no probability to learn from, or it does not fit.
        OSError: a file cannot be read.
    """
    init_from = str(config.checkpoint.init_from)
    reader, _ = open_checkpoint(Path(init_from))
    policy = policy_of(config, answering_config(reader.meta))
    origin = resolve_origin(policy)
    if config.grpo.over == "every" and origin.saved.model.num_blocks > 1:
        raise ValueError(f"grpo.over=every: {init_from} has blocks of its own weights, and only one output")
    return policy, origin


def policy_of(config: GrpoConfig, answering: FinetuneConfig | None) -> FinetuneConfig:
    """How a run answers that starts from one which answers so; None: from a pretrained one, whose answer comes at once.

    Raises:
        ValueError: that way of reasoning has no probability to learn from.
    """
    init_from, rollout = config.checkpoint.init_from, config.rollout
    shared: dict[str, Any] = {
        "run": config.run, "data": config.data.model_dump(), "engine": config.engine,
        "checkpoint": {"init_from": init_from},
        "validation": {"batch": config.validation.batch, "max_new_tokens": rollout.max_new_tokens},
    }  # fmt: skip
    if answering is None:
        reasoning: dict[str, Any] = {"method": {"name": "no_cot"}, "train": {}}
    else:
        reasoning = {
            "method": answering.method.model_dump(exclude_unset=True),
            "curriculum": answering.curriculum.model_dump(exclude_unset=True),
            "train": {"epochs": answering.train.epochs, "num_loops": answering.train.num_loops},
        }
    reasoning["train"] |= {
        "precision": config.train.precision,
        "num_loops": config.train.num_loops or reasoning["train"].get("num_loops"),
    }
    policy = FinetuneConfig.model_validate({**shared, **reasoning})
    _require_probabilities(config, policy)
    return policy


def _require_probabilities(config: GrpoConfig, policy: FinetuneConfig) -> None:
    """Raise a ValueError unless what the model does before its text has a probability, and differs between answers."""
    method, noise, init_from = policy.chosen_method, config.rollout.thought_noise, config.checkpoint.init_from
    if policy.method.stop != "count":
        raise ValueError(f"{init_from} ends its thoughts by a classifier: only fixed numbers of them are learnt from")
    if method.has_thoughts and (not method.thinks_in_sequence or policy.method.jacobi_passes is not None):
        raise ValueError(f"{init_from} refines its thoughts together: only those made in sequence have a probability")
    if method.has_thoughts and not noise:
        raise ValueError(
            "rollout.thought_noise=0: latent thoughts need noise, which gives them a probability; 0.1 is a start"
        )
    if method.has_thoughts and config.grpo.over == "every":
        raise ValueError(f"grpo.over=every: {init_from} has latent thoughts, which are states of the last loop alone")
    if noise and not method.has_thoughts:
        raise ValueError(f"rollout.thought_noise={noise}: {init_from} has no latent thoughts; leave it out")
