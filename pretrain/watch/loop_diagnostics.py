"""What each loop does to the state, on held-out sequences, in one pass over all depths.

After loop l, in the mean over sequences (of each its tokens up to the last that is predicted), with x_l the states:

    state_norm         |x_l|                                             grows without bound: the loop is not stable
    state_change       |x_l - x_(l-1)| / |x_(l-1)|                       near 0: the loop does nothing
    state_cosine       cosine of x_l with x_(l-1)
    token_correlation  mean cosine between the states of two tokens      near 1: tokens have become alike, a run that
                                                                         fails (Geiping et al. 2025, section 4.3)
    effective_rank     exp of the entropy of the singular values of some tokens' states (Roy and Vetterli 2007)
    loss               nats per token when stopping at loop l
    gain               loss at l-1 less loss at l, in nats: what loop l is worth
    exit               probability of stopping after loop l, where the design has a gate

All pairs of n tokens cost as much as one sum: Σ_ij u_i·u_j = |Σ_i u_i|² for unit vectors. Numbers are sums over
sequences in fp64, so the layout and the micro-batch show in none. Cost: a forward pass of `num_sequences` sequences
with a head for each loop, and a QR of `num_tokens` states for each sequence and loop.
"""

from collections import defaultdict
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pretrain.data.stream.labels import IGNORED
from pretrain.eval.validation import Validation
from pretrain.model.exits import log_exit_probabilities
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.engine import LossSums, StepResult
from pretrain.parallel.stop_vote import sum_over_ranks
from pretrain.schema.section import Section
from pretrain.watch.hook import Hook, WatchedRun


class LoopDiagnosticsParameters(Section):
    num_sequences: int = Field(default=16, gt=0)
    """Sequences of the validation split that are looked at, the first ones."""
    num_tokens: int = Field(default=64, gt=1)
    """Tokens of each, evenly spaced, that the effective rank is of."""
    num_loops: int | None = Field(default=None, gt=0)
    """Loops that are run. Default: model.num_loops."""


class LoopDiagnostics(Hook[LoopDiagnosticsParameters]):
    parameters_type: ClassVar[type[Section]] = LoopDiagnosticsParameters
    every: ClassVar[int] = 100
    is_regular: ClassVar[bool] = True

    def __init__(self, parameters: LoopDiagnosticsParameters, run: WatchedRun) -> None:
        super().__init__(parameters, run)
        config = run.config
        if config.model.num_blocks > 1:
            raise ValueError("train.hooks: loop_diagnostics: a block-regularised model has no loops to look at")
        validation = config.validation.model_copy(update={"num_sequences": parameters.num_sequences})
        own = config.model_copy(update={"validation": validation})
        self.batches = Validation(own, run.layout, run.engine.groups).batches
        self.num_loops = parameters.num_loops or config.model.num_loops

    def on_step(self, model: LoopedGPT, result: StepResult) -> dict[str, float]:
        loops, engine = range(1, self.num_loops + 1), self.run.engine
        sums: dict[str, Tensor] = {}
        losses: LossSums | None = None
        for rows in self.batches:
            look = _Look(model, [inputs.labels for inputs in engine.split_rows(rows)], self)
            found = engine.evaluate(rows, loops, on_loop=look.at)
            losses = found if losses is None else losses + found
            for name, total in look.sums.items():
                sums[name] = sums[name] + total if name in sums else total
        assert losses is not None, "there is at least one batch"
        of_loops = [loss for loss, _ in losses.means()]
        numbers = self._means(sums)
        numbers |= {f"loss.loop{loop}": loss for loop, loss in zip(loops, of_loops, strict=True)}
        pairs = zip(loops[1:], of_loops, of_loops[1:], strict=False)
        return numbers | {f"gain.loop{loop}": before - after for loop, before, after in pairs}

    def _means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Means over the sequences of all ranks, of the sums that the last stages have. Collective."""
        names, groups = self._names(), self.run.engine.groups
        own = torch.zeros(len(names) + 1, dtype=torch.float64, device=groups.device)
        if groups.is_last_stage and groups.tensor.rank() == 0:
            own = torch.stack([sums[name] for name in (*names, "sequences")])
        *totals, count = sum_over_ranks(own)
        return {name: total / max(count, 1) for name, total in zip(names, totals, strict=True)}

    def _names(self) -> list[str]:
        """The numbers of `_Look`, on ranks too that do not see the states."""
        loops = range(1, self.num_loops + 1)
        families = {"state_norm": loops, "state_change": loops[1:], "state_cosine": loops[1:]}
        families |= {"token_correlation": loops, "effective_rank": loops}
        families |= {"exit": loops} if self.run.engine.model.design.exit.has_gate else {}
        return [f"{family}.loop{loop}" for family, of in families.items() for loop in of]


class _Look:
    """Sums over the sequences of some micro-batches, as the loops go by."""

    def __init__(self, model: LoopedGPT, labels: list[Tensor], hook: LoopDiagnostics) -> None:
        self.model, self.num_loops, self.num_tokens = model, hook.num_loops, hook.parameters.num_tokens
        self.lengths = [_lengths(each) for each in labels]
        self.widths = [each.shape[1] for each in labels]
        self.before: dict[int, Tensor] = {}
        self.log_odds: defaultdict[int, list[Tensor]] = defaultdict(list)
        self.sums: dict[str, Tensor] = {}

    def at(self, number: int, loop: int, states: Tensor) -> None:
        """Look at the states [t held, d] of a micro-batch after a loop."""
        lengths, width = self.lengths[number], self.widths[number]
        streams = self.model.ops.to_split(states)  # under sequence parallelism a rank holds some of the tokens
        whole = self.model.design.residual.combine(streams)
        counts = (torch.arange(width, device=whole.device) < lengths[:, None]).double()  # [b, s]
        counts = counts / counts.sum(1, keepdim=True).clamp_min(1)
        now = whole.double().unflatten(0, (-1, width))  # [b, s, d]
        norms = now.norm(dim=-1)
        self._add(f"state_norm.loop{loop}", (norms * counts).sum())
        unit = now / norms.clamp_min(torch.finfo(torch.float64).tiny)[..., None]
        if number in self.before:
            then = self.before[number]
            size = then.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
            self._add(f"state_change.loop{loop}", ((now - then).norm(dim=-1) / size * counts).sum())
            self._add(f"state_cosine.loop{loop}", ((unit * then).sum(-1) / size * counts).sum())
        together = (unit * counts[..., None]).sum(1).square().sum(-1) * lengths**2  # |Σ u|², [b]
        pairs = (lengths * (lengths - 1)).clamp_min(1)
        self._add(f"token_correlation.loop{loop}", ((together - lengths) / pairs)[lengths > 0].sum())
        self._add(f"effective_rank.loop{loop}", self._effective_rank(now, lengths))
        self._add_exits(number, loop, streams, counts)
        self.before[number] = now
        if loop == self.num_loops:
            del self.before[number]
            self._add("sequences", (lengths > 0).sum().double())

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _effective_rank(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Sum over sequences; [b, s, d] states."""
        total = states.new_zeros(())
        for row, length in zip(states, lengths.tolist(), strict=True):
            if length:
                count = min(self.num_tokens, length)
                places = torch.arange(count, device=states.device) * length // count
                total += effective_rank(row[places])
        return total

    def _add_exits(self, number: int, loop: int, states: Tensor, counts: Tensor) -> None:
        if not self.model.design.exit.has_gate:
            return
        odds = self.log_odds[number]
        odds.append(self.model.exit_log_odds(states).double())
        if loop == self.num_loops:
            shares = log_exit_probabilities(torch.stack(odds)[:-1]).exp()  # [L, t]
            for place, share in enumerate(shares, start=1):
                self._add(f"exit.loop{place}", (share.view_as(counts) * counts).sum())
            odds.clear()


def effective_rank(states: Tensor) -> Tensor:
    """exp of the entropy of the singular values [n, d] -> scalar; 0 of states that are zero. Source: Roy and Vetterli
    2007, "The effective rank", section 2."""
    triangle = torch.linalg.qr(states.mT, mode="r").R  # the same singular values, and at most n of them
    values = torch.linalg.svdvals(triangle.cpu())
    if not torch.isfinite(values).all() or not values.sum():
        return states.new_full((), 0.0 if torch.isfinite(values).all() else float("nan"))
    return torch.special.entr(values / values.sum()).sum().exp().to(states.device)


def _lengths(labels: Tensor) -> Tensor:
    """Tokens of each row [b, s] up to the last that is predicted; 0 of a row that only fills up."""
    places = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return (places * (labels != IGNORED)).amax(1)
