"""The dry run of reinforcement learning, without a process group or GPU."""

from finetune.answers.scoring import answer_settings
from finetune.reinforce.config import GrpoConfig, check_layout, ledger
from finetune.reinforce.policy import resolve_policy
from pretrain.model.count import count_parameters
from pretrain.plan.text import Row, model_rows


def plan_rows(config: GrpoConfig, world_size: int) -> list[Row]:
    """The model and its weights, how it answers, the ranks and the answers of a step.

    Raises:
        ValueError: the configuration does not fit the ranks or the run it starts from.
        OSError: a file cannot be read.
    """
    layout = check_layout(config, world_size)
    policy, origin = resolve_policy(config)
    settings, method = answer_settings(policy, origin.tokenizer), policy.method.name
    thoughts = f"{settings.num_slots} {policy.chosen_method.slots.noun}s, " if policy.chosen_method.slots else ""
    sizes = f"tensor {config.engine.tensor} × data {layout.data_parallel}, ZeRO stage {config.engine.zero_stage}"
    return [
        *model_rows(origin.saved.model, count_parameters(origin.saved.model, origin.saved.seq_len)),
        ("weights", f"of {config.checkpoint.init_from}"),
        ("answers", f"as {method}: {thoughts}{settings.max_new_tokens} tokens of text at most"),
        ("ranks", f"{layout.world_size} = {sizes}"),
        ("step", ledger(config, layout)),
    ]
