"""What the ranks do: train a few steps and score all depths; answer prompts; train a whole run; export one. The process
that asks knows these functions by name alone, and needs no torch."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.layout import check_layout
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.device.hardware import DTYPES
from pretrain.device.ranks import world_from_environment
from pretrain.eval.scorer import Scorer
from pretrain.eval.validation import Validation
from pretrain.generation.engine import Wish
from pretrain.generation.generate import fulfil
from pretrain.generation.sampling import Generation
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.optim.learning_rate import learning_rate
from pretrain.optim.loop_count import step_loops
from pretrain.parallel.engine import Engine
from pretrain.parallel.replica_loader import ReplicaLoader
from pretrain.parallel.stop_vote import StopVote
from pretrain.run.world import join_world
from pretrain.trainer import run
from pretrain.verification.comparison import Numbers
from pretrain.verification.prompts import NUM_NEW, Prompts


def measure(config: RunConfig, num_updates: int, loops: Sequence[int]) -> Numbers:
    """Train some steps on the real loader, then score the validation sequences at each loop count, all in one pass;
    the same numbers on every rank."""
    layout = check_layout(config, world_from_environment().size)
    numbers: Numbers = {}
    with join_world(config) as (groups, _):
        engine = Engine(config, groups, Tokenizer.load(config.data.tokenizer).separators)
        vote = StopVote(lambda: None, groups.device)
        train = config.train
        with ReplicaLoader(
            config.data, groups, seed=config.run.seed, seq_len=train.seq_len, global_batch=train.global_batch
        ) as loader:
            for step in range(num_updates):
                drawn = step_loops(config.model, train, config.run.seed, step, loader.next_sample)
                lr = learning_rate(config.optimizer, step, train.steps)
                own_loops = loader.own(drawn.counts)
                rows = loader.next_batch()
                result = engine.train_step(
                    rows, own_loops, lr, vote, backprop_loops=drawn.backprop_loops,
                    regulariser_share=drawn.regulariser_share, short_loops=drawn.short_loops,
                )  # fmt: skip
                where = f"of step {step + 1}, L={drawn.mean:g}"
                numbers |= {f"loss {where}": result.loss, f"gradient norm {where}": result.grad_norm}
                if result.objective is not None:
                    numbers[f"objective {where}"] = result.objective
                if config.model.loop_regulariser.weight:
                    numbers[f"regularisation {where}"] = result.regularisation
        losses = Validation(config, layout, groups).losses(engine, loops, vote)
        assert losses is not None, "nobody votes to stop"
        numbers |= {f"validation loss at L={count}": loss for count, (loss, _) in zip(loops, losses, strict=True)}
    return numbers


def answer(config: RunConfig, prompts: Prompts) -> Numbers:
    """Continue prompts and score continuations as the evaluation does, with caches, padding and all depths in one pass,
    over the ranks of this world; on rank 0."""
    numbers: Numbers = {}
    with join_world(config) as (groups, _):
        engine = Engine(config, groups, Tokenizer.load(config.data.tokenizer).separators)
        model, is_sequence = engine.model.eval(), config.parallel.sequence
        scorer = Scorer(model, groups, batch_size=len(prompts.contexts), sequence_parallel=is_sequence)
        if dist.get_rank():
            scorer.serve()
            return numbers
        for number, scores in enumerate(scorer.likelihoods(prompts.pairs, prompts.loops)):
            for num_loops, score in zip(prompts.loops, scores, strict=True):
                numbers[prompts.score_name(number, num_loops)] = score.log_probability
        for num_loops in prompts.loops:
            rows = scorer.continuations(prompts.contexts, _greedily(prompts, num_loops), _never_over)
            numbers |= prompts.token_numbers(rows, num_loops)
        scorer.close()
    return numbers


def answer_with_cache(config: RunConfig, prompts: Prompts) -> Numbers:
    """Tokens and their log-probabilities as generation with a cache has them, all prompts in one padded batch."""
    model = _whole_model(config)
    numbers: Numbers = {}
    for num_loops in prompts.loops:
        settings = _greedily(prompts, num_loops)
        wishes = [Wish(prompt=prompt, settings=settings, wants_likelihood=True) for prompt in prompts.contexts]
        found = fulfil(model, wishes)
        numbers |= prompts.token_numbers([each.tokens for each in found], num_loops)
        for number, each in enumerate(found):
            for place, value in enumerate(each.log_probabilities):
                numbers[prompts.probability_name(number, place, num_loops)] = value
    return numbers


@torch.inference_mode()
def answer_plainly(config: RunConfig, prompts: Prompts) -> Numbers:
    """What `answer` and `answer_with_cache` should find, from the definition: every prompt alone, a pass over all its
    tokens for each new one, a pass for each loop count."""
    model = _whole_model(config)
    numbers: Numbers = {}
    for num_loops in prompts.loops:
        rows: list[list[int]] = []
        for number, (context, continuation) in enumerate(prompts.pairs):
            logits = model.logits(model(torch.tensor([[*context, *continuation]]), num_loops)).log_softmax(-1)
            scores = logits[len(context) - 1 : -1].gather(-1, torch.tensor(continuation)[:, None])
            numbers[prompts.score_name(number, num_loops)] = scores.sum().item()
            tokens = list(context)
            for place in range(NUM_NEW):
                last = model.logits(model(torch.tensor([tokens]), num_loops))[-1]
                tokens.append(int(last[: prompts.vocab_size].argmax()))
                probability = last.log_softmax(-1)[tokens[-1]]
                numbers[prompts.probability_name(number, place, num_loops)] = probability.item()
            rows.append(tokens[len(context) :])
        numbers |= prompts.token_numbers(rows, num_loops)
    return numbers


def train(config: RunConfig) -> int:
    """The whole run, as `python -m pretrain.train` does it; the exit code."""
    return run(config, check_layout(config, world_from_environment().size))


def compare_states(one: Path, other: Path) -> str:
    """The first tensor of the newest checkpoints of two runs (weights, optimizer, data, random state) that is not
    bitwise the same; empty if all are."""
    (first, _), (second, _) = open_checkpoint(one), open_checkpoint(other)
    if (first.step, set(first.tensors)) != (second.step, set(second.tensors)):
        return f"step {first.step} with {len(first.tensors)} tensors, step {second.step} with {len(second.tensors)}"
    for name in first.tensors:
        ours, theirs = first.read_whole(name), second.read_whole(name)
        if not torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)):
            place = int((ours != theirs).flatten().int().argmax())
            return f"{name}[{place}] is {theirs.flatten()[place].item()!r}, {ours.flatten()[place].item()!r}"
    return ""


def export(run_dir: Path, out: Path) -> tuple[bool | None, str]:
    """Export a run as tools/convert_checkpoint.py does it, which compares logits and ids of the tokenizer; whether they
    are the same, None where the run cannot be exported, and what was said of it."""
    from pretrain.hf.check import WrongConversion
    from pretrain.hf.exporting import export_run

    try:
        return True, ": ".join(export_run(run_dir, out)[1:])
    except WrongConversion as error:
        return False, str(error)
    except ValueError as error:
        return None, str(error)


def _greedily(prompts: Prompts, num_loops: int) -> Generation:
    return Generation(max_new_tokens=NUM_NEW, vocab_size=prompts.vocab_size, num_loops=num_loops)


def _never_over(_: list[int]) -> bool:
    return False


def _whole_model(config: RunConfig) -> LoopedGPT:
    model = LoopedGPT(config.model, config.train.seq_len)
    initialise(model, config.run.seed)
    return model.to(DTYPES[config.train.precision]).eval()
