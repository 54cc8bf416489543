"""Hooks that go wrong, for runs of the pool."""

import math

import torch
import torch.distributed as dist

from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.engine import StepResult
from pretrain.schema.section import Section
from pretrain.watch.hook import Hook, NoParameters, Numbers


class FailsLater(Hook[NoParameters]):
    """On the last rank alone, in its third call."""

    def on_step(self, model: LoopedGPT, result: StepResult) -> Numbers:
        if self.run.step == 3 and dist.get_rank() == dist.get_world_size() - 1:
            raise LookupError("nothing there")
        return {"late": self.run.step}


class FailsBeforeTalkingParameters(Section):
    rank: int = 0


class FailsBeforeTalking(Hook[FailsBeforeTalkingParameters]):
    """On one rank alone, in its third call, while the others wait for it."""

    parameters_type = FailsBeforeTalkingParameters

    def on_step(self, model: LoopedGPT, result: StepResult) -> Numbers:
        if self.run.step == 3 and dist.get_rank() == self.parameters.rank:
            raise LookupError("nothing to say")
        total = torch.ones(())
        dist.all_reduce(total)
        return {"ranks": total}


class FailsAtOnce(Hook[NoParameters]):
    def on_step(self, model: LoopedGPT, result: StepResult) -> Numbers:
        return {"ratio": 1 / (self.run.step - 1)}


class Meddles(Hook[NoParameters]):
    """Draws random numbers, talks to the other ranks, and returns what is not finite."""

    def on_step(self, model: LoopedGPT, result: StepResult) -> Numbers:
        torch.rand(3)
        total = torch.ones(())
        dist.all_reduce(total)
        assert not torch.is_grad_enabled()
        return {"ranks": total, "lost": math.nan, "rank": dist.get_rank()}


class Empty(Hook[NoParameters]):
    """Neither method."""


class Talks(Hook[NoParameters]):
    def on_step(self, model: LoopedGPT, result: StepResult) -> Numbers:
        return {"word": "high"}


class CountsGroups(Hook[NoParameters]):
    """How many process groups this rank is in."""

    def on_step(self, model: LoopedGPT, result: StepResult) -> Numbers:
        return {"groups": len(dist.distributed_c10d._world.pg_map)}
