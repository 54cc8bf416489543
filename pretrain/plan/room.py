"""Whether a run can be held in memory at all, found before anything is allocated.

What a rank cannot do without is counted: the weights, gradients and optimizer state of its stage, the cursors of the
streams, a batch and the validation sequences; and half of what the plan says of activations and working space at the
fewest loops that can be drawn, as kernels may keep less. So what is refused could not have worked.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.plan.plan import make_plan
from pretrain.plan.policy import candidates
from pretrain.plan.text import GIB

INTEGER_BYTES = 8
"""Of a token id, a label and a field of a cursor on the host."""


class Need(NamedTuple):
    """Memory that something takes on a rank."""

    what: str
    bytes: float


def model_needs(config: RunConfig, layout: Layout, teacher: SavedModel | None) -> list[Need]:
    """What the stage of a rank takes on its device, the largest of all stages, with the model of train.teacher."""
    train, sampling = config.train, config.train.loop_sampling
    if sampling.distribution != "fixed":
        fewest = sampling.model_copy(update={"maximum": sampling.minimum})
        config = config.model_copy(update={"train": train.model_copy(update={"loop_sampling": fewest})})
    plans = [make_plan(each, layout.world_size, teacher) for each in candidates(config)]
    plan = min(plans, key=lambda each: each.worst_stage.total)
    stage = plan.worst_stage
    state = f"weights, gradients and optimizer state of a model of {sum(plan.parameters.values()):,} parameters"
    batch = f"train.micro_batch={train.micro_batch} sequences of train.seq_len={train.seq_len}"
    return [
        Need(state, stage.weights + stage.gradients + stage.optimizer),
        Need(f"the model of train.teacher.run={train.teacher.run}", stage.teacher),
        Need(f"activations of {batch}", (stage.activations + stage.working) / 2),
    ]


def host_needs(config: RunConfig, layout: Layout) -> list[Need]:
    """What waits on the host for a rank on a GPU, the most of all stages, where the configuration says that it does."""
    if config.train.recompute != "offload":
        return [Need("nothing", 0.0)]
    most = max(stage.host for stage in make_plan(config, layout.world_size).stages)
    return [Need("what enters layers (train.recompute=offload)", most)]


def data_needs(config: RunConfig, layout: Layout, cursor_fields: int) -> list[Need]:
    """What the loader of a rank takes on the host; a cursor has so many numbers."""
    data, train, validation = config.data, config.train, config.validation
    sequence, ranks = 2 * train.seq_len * INTEGER_BYTES, layout.data_parallel
    cursors = data.num_streams * len(data.sources) * cursor_fields * INTEGER_BYTES
    needs = [
        Need(f"the cursors of data.num_streams={data.num_streams}", cursors),
        Need(
            f"a batch of train.global_batch={train.global_batch} sequences of train.seq_len={train.seq_len}",
            train.global_batch // ranks * sequence,
        ),
    ]
    if validation.every:
        held_out = f"validation.num_sequences={validation.num_sequences} of train.seq_len={train.seq_len}"
        needs.append(Need(held_out, validation.num_sequences // ranks * sequence))
    return needs


def require_room(needs: Sequence[Need], there: int | None, where: str) -> None:
    """Raise a ValueError that names the largest need if all together are more than the bytes `there`; None: unknown."""
    total, largest = sum(need.bytes for need in needs), max(needs, key=lambda need: need.bytes)
    if there is not None and total > there:
        raise ValueError(
            f"a rank needs at least {total / GIB:,.1f} GiB of memory, most of it for {largest.what}; "
            f"{where} has {there / GIB:,.1f} GiB"
        )
