"""What a pretraining run goes on from: what it counts, and which settings may differ from those of its checkpoint."""

from dataclasses import dataclass

from pretrain.checkpoint.counters import Counters
from pretrain.run.resume import MAY_DIFFER, Resumable

RESUMABLE = Resumable(
    training="pretraining", mark="next_sample", config="config",
    may_differ={
        **MAY_DIFFER,
        "parallel": "no number depends on the ranks",
        "data.sources.*.path": "the content is compared, the folder may have moved",
        "data.sources.*.weight": "shares of the sources from the next sample on",
        "data.sources.*.max_tokens": "how much of a source is read, with what was read so far",
        "data.sources.*.max_epochs": "how often a source is read, with what was read so far",
        "data.temperature": "shares of the sources from the next sample on",
        "data.cut_documents": "the order that follows from it is compared",
        "data.num_workers": "speed alone",
        "data.prefetch_batches": "speed alone",
        "data.on_damage": "what happens at damage from here on",
        "train.steps": "the length of the run, and with it the rest of the schedules of learning rate and loops",
        "train.global_batch": "samples of a step from here on; tokens are counted",
        "train.recompute": "memory and speed alone",
        "train.memory_gib": "memory and speed alone",
        "train.compile": "speed alone",
        "train.loop_sampling": "loop counts of the steps from here on",
        "train.backprop_loops": "how far gradients reach from here on",
        "train.backprop_growth": "how far gradients reach from here on",
        "train.z_loss_weight": "a term of the loss from here on",
        "train.loop_loss": "what the loss is of from here on",
        "train.teacher": "what is imitated from here on",
        "train.max_bad_steps": "when to give up",
        "alarms": "what is noticed, and what is done about it, from here on",
        "train.hooks": "what is measured beside, from here on",
    },
    must_equal=("optimizer.name",),
)  # fmt: skip
"""What defines the model, the optimizer's state and the order of the data may not change when a run is resumed."""


@dataclass(kw_only=True)
class PretrainCounters(Counters):
    """What a run counts; saved with every checkpoint."""

    skipped_in_a_row: int = 0
    """Of the skipped steps, the latest without an update between."""
    rollbacks: int = 0
    """How often an alarm has brought the run back to an earlier step."""
