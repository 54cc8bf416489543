"""The run of reinforcement learning: answers drawn, rewarded, learnt from, step by step; validated by answering
greedily with every number of thoughts.

    runs/<name>/  metrics.jsonl (a row a step), eval/coconut.jsonl (a row an evaluation), checkpoints/

What a step draws is a function of (run.seed, step) and the weights, so a run that was killed anywhere goes on from its
newest checkpoint as if nothing had happened. The result answers like a fine-tuned run, for every tool that reads those.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from finetune.answers.answering import StageAnswerer, log_row
from finetune.answers.scoring import answer_settings
from finetune.config import FinetuneConfig
from finetune.engine.engine import FinetuneEngine, FinetuneStepResult
from finetune.examples.examples import ExampleSet, data_fingerprint, load_example_set, untracked
from finetune.method.curriculum import final_stage
from finetune.reinforce.batch import RolloutBatch, RolloutStep, collate
from finetune.reinforce.config import GrpoConfig, ledger
from finetune.reinforce.drawing import Drawer, Drawn, Totals
from finetune.reinforce.objective import ActionLikelihood, GrpoObjective
from finetune.reinforce.policy import resolve_policy
from finetune.reinforce.rows import GrpoRow
from finetune.run.finetuned_model import POLICY
from finetune.run.origin import Origin
from finetune.run.plan import model_need
from finetune.run.session import examples_sha256, open_session, require_same_examples
from pretrain.checkpoint.counters import Counters
from pretrain.config.layout import Layout
from pretrain.device.hardware import device_memory, peak_memory_gib
from pretrain.optim.learning_rate import learning_rate
from pretrain.parallel.stage import load_stage
from pretrain.parallel.stop_vote import sum_over_ranks
from pretrain.plan.room import require_room
from pretrain.report.page import write_last_report
from pretrain.run.progress import tracked
from pretrain.run.resume import MAY_DIFFER, Resumable
from pretrain.run.session import RunSession
from pretrain.run.stragglers import work_fields
from pretrain.run.world import join_world
from pretrain.tasks.task import Split

RESUMABLE = Resumable(
    training="reinforcement learning", mark="grpo", config="grpo",
    may_differ={
        **MAY_DIFFER,
        "train.steps": "the length of the run",
        "rollout.batch": "memory and speed alone",
        "engine": "how the work is spread over the ranks",
        "data.test": "what the last weights are scored on",
    },
)  # fmt: skip


def run(config: GrpoConfig, layout: Layout) -> int:
    """Train on the ranks of this world; every rank calls it. Returns the exit code.

    Raises:
        ValueError: naming what in configuration, data or run directory does not fit.
        OSError: storage failed.
        RunFailed: either of these, after the run had begun.
    """
    policy, origin = resolve_policy(config)
    with join_world(config) as (groups, signals):
        require_room([model_need(origin.saved, layout.world_size)], *device_memory(groups.device))
        with open_session(config, layout, groups, origin, signals) as session:
            code = GrpoTrainer(config, policy, origin, session).run()
            write_last_report(session)
            return code


class GrpoTrainer:
    """One rank of a run."""

    def __init__(self, config: GrpoConfig, policy: FinetuneConfig, origin: Origin, session: RunSession) -> None:
        self.config, self.policy, self.session, self.groups = config, policy, session, session.groups
        self.train, self.validation = self._examples("train"), self._examples("validation")
        self.test = self._examples("test") if config.data.test.is_given else None
        session.identity = replace(session.identity, data=data_fingerprint(config.data.train, self.train))
        self.settings = answer_settings(policy, session.tokenizer)
        replicas = self.groups.data
        self.drawer = Drawer(config, self.train, self.settings, session.tokenizer, replicas.rank(), replicas.size())
        self.likelihood = ActionLikelihood(config, self.settings)
        make_objective = partial(GrpoObjective, config=config, likelihood=self.likelihood)
        self.engine = FinetuneEngine(config, origin.saved, session.layout, self.groups, make_objective)
        self.answering = StageAnswerer(policy, origin.saved, session.tokenizer, self.groups, session.vote)
        for split, examples in self._splits():
            self.answering.check_lengths(split, examples)  # what is longer than before is learnt here
        self.stage = final_stage(policy.curriculum, policy.chosen_method)
        assert origin.weights is not None, "the configuration has been checked"
        self.reference = None
        if config.grpo.kl_weight:
            self.reference = load_stage(origin.saved, config.parallel, self.groups, origin.weights)
            self.reference.requires_grad_(False)
        self.counters = Counters()
        scored_every = self._resume(origin)
        session.begin(
            self.counters, config.train.steps, more=f", {ledger(config, session.layout)}", scored_every=scored_every
        )

    def _splits(self) -> Iterator[tuple[Split, ExampleSet]]:
        yield "train", self.train
        yield "validation", self.validation
        if self.test is not None:
            yield "test", self.test

    def run(self) -> int:
        """Train until the last step or until the ranks vote to stop; returns the exit code."""
        config, counters, session, vote = self.config, self.counters, self.session, self.session.vote
        if not counters.step:
            self._validate()
        while counters.step < config.train.steps and not vote.reason:
            try:
                self._train_step()
            except FloatingPointError as error:
                return session.fail(
                    f"step {counters.step + 1}: {error}: lower optimizer.lr or set optimizer.clip_grad_norm; "
                    "the same command continues from the newest checkpoint"
                )
            is_last = counters.step == config.train.steps
            if (counters.step % config.validation.every == 0 or is_last) and not vote.reason:
                self._validate()
            every = config.checkpoint.every
            if is_last or vote.reason or (every and counters.step % every == 0):
                self._save()
            session.report_saves()
        if self.test is not None and counters.step == config.train.steps and not vote.reason:
            self._score(self.test, "test", self.settings.num_slots)
        return session.finish()

    def _train_step(self) -> None:
        """Draw answers and learn from them.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        counters, config, started = self.counters, self.config, time.perf_counter()
        lr = learning_rate(config.optimizer.schedule, counters.step, self.session.num_steps)
        with self.session.step(self.engine.how_far):
            self.groups.phase.enter("rollout")
            with self.engine.whole_model() as (model, _):
                self.groups.phase.work.compute()
                drawn = self.drawer.draw(model, counters.step)
                self.groups.phase.work.rest()
            totals = Totals.of(self._sum(drawn.totals.numbers()))
            rollout_s = time.perf_counter() - started
            step = RolloutStep(micro_batches=tuple(self._micro_batches(drawn)), num_targets=round(totals.actions))
            objective = self.engine.objective
            assert isinstance(objective, GrpoObjective)
            objective.sums.zero_()
            results = [self.engine.train_step(step, lr, self.session.vote) for _ in range(config.train.updates)]
        counted = [value / config.train.updates for value in self._sum(objective.sums.tolist())]
        skipped = any(result.skipped for result in results)
        counters.count_step(tokens=round(totals.tokens), flops=totals.flops, skipped=skipped)
        self._log(results[-1], totals, counted, lr, rollout_s, time.perf_counter() - started)

    def _micro_batches(self, drawn: Drawn) -> list[RolloutBatch]:
        """This rank's answers, with the log-probabilities that updates compare with."""
        size = self.config.train.micro_batch
        parts = [slice(start, start + size) for start in range(0, len(drawn.rollouts), size)]
        found = [collate(drawn.rollouts[part], drawn.advantages[part], self.settings) for part in parts]
        device = self.groups.device
        if self.config.train.updates > 1:
            with self.engine.whole_model() as (model, _), torch.no_grad():
                found = [replace(each, before=self.likelihood.of(model, each.to(device))) for each in found]
        if self.reference is not None:
            with torch.no_grad():
                found = [replace(each, reference=self.likelihood.of(self.reference, each.to(device))) for each in found]
        return found

    def _sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the replicas. Collective."""
        numbers = torch.tensor(values, dtype=torch.float64, device=self.groups.device)
        return sum_over_ranks(numbers / self.groups.tensor.size())

    def _log(
        self, result: FinetuneStepResult, totals: Totals, counted: Sequence[float], lr: float, rollout_s: float,
        seconds: float,
    ) -> None:  # fmt: skip
        if self.session.metrics is None:
            return
        cost = self.session.cost(tokens=round(totals.tokens), flops=totals.flops, seconds=seconds)
        questions, count = self.config.rollout.questions, self.config.num_rollouts
        clipped, surprise, divergence = counted
        self.session.metrics.log_step(
            GrpoRow(
                run_id=self.session.identity.run_id,
                config=self.session.identity.config,
                step=self.counters.step,
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                reward=totals.reward / questions,
                reward_stderr=math.sqrt(
                    max(0.0, totals.square / questions - (totals.reward / questions) ** 2) / questions
                ),
                mixed_groups=totals.mixed / questions,
                entropy=surprise / max(totals.text_actions, 1),
                divergence=divergence / totals.actions,
                clipped=clipped / totals.actions,
                text_tokens=totals.text / count,
                ended=totals.ended / count,
                thoughts_per_example=totals.thoughts / count,
                latent_share=totals.thoughts / max(totals.thoughts + totals.text, 1),
                rollout_s=rollout_s,
                examples_per_s=count / seconds,
                tokens_per_s=cost.tokens_per_s,
                flops_per_s=cost.flops_per_s,
                mfu_pct=cost.mfu_pct,
                step_time_s=cost.seconds,
                **work_fields(self.session.work),
                memory_gib=peak_memory_gib(self.groups.device),
                skipped=self.counters.skipped,
            )
        )

    def _validate(self) -> None:
        """Answer the validation questions with every number of thoughts, and say what each thought adds."""
        has_thoughts = self.policy.chosen_method.has_thoughts
        counts = range(self.settings.num_slots + 1) if has_thoughts else [self.settings.num_slots]
        found = []
        for num_slots in counts:
            accuracy = self._score(self.validation, "validation", num_slots)
            if accuracy is None:
                return
            found.append(accuracy)
        if has_thoughts:
            gains = (f"{100 * (more - less):+.1f}" for less, more in pairwise(found))
            self.session.say(f"step {self.counters.step}: points that each thought adds: {', '.join(gains)}")

    def _score(self, questions: ExampleSet, split: Split, num_slots: int) -> float | None:
        """Answer questions greedily and keep the row: the accuracy, None if the ranks voted to stop. Collective."""
        self.groups.phase.enter("validation")
        with self.engine.whole_model() as (model, _):
            tally = self.answering.score(model, None, questions, self.stage, num_slots)
        if tally is None:
            return None
        row = self.answering.row(
            tally, questions, split, self.stage, counters=self.counters, epoch=self.policy.train.epochs - 1,
            identity=self.session.identity, num_slots=num_slots,
        )  # fmt: skip
        if self.session.metrics is not None:
            log_row(self.session.metrics, row)
        return row.accuracy

    def _examples(self, split: Split) -> ExampleSet:
        track = tracked if self.session.rank == 0 else untracked
        section, seed = getattr(self.config.data, split), self.config.run.seed
        with self.session.interruptible():
            return load_example_set(section, split, seed, self.session.tokenizer, track, needs_steps=False)

    def _save(self) -> None:
        """Start saving everything that a resumed run needs."""
        self.engine.check_weights()
        meta: dict[str, Any] = {
            "grpo": self.config.model_dump(mode="json"),
            POLICY: self.policy.model_dump(mode="json"),
            "examples_sha256": examples_sha256(self.train),
        }
        self.session.save(self.engine.pieces(), {**meta, **self.engine.meta()})

    def _resume(self, origin: Origin) -> int:
        """Go on from the newest good checkpoint, or start from the weights of the other run; returns how often it has
        been validated until there."""
        reader = self.session.resume(RESUMABLE)
        if reader is None:
            assert origin.weights is not None
            self.engine.load(origin.weights)
            return 0
        require_same_examples(reader, self.train)
        self.engine.load(reader, reader.meta)
        self.counters = Counters.read(reader.meta)
        then, now = reader.meta["grpo"]["validation"]["every"], self.config.validation.every
        return now if now == then else 0
