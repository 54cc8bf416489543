"""The loss and every gradient of the methods that add a term, against their formulas written out row by row, in fp64;
what their steps and answers cost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import FinetuneConfig, check_layout
from finetune.engine.objective import Objective
from finetune.examples.examples import EncodedExample
from finetune.examples.sampler import Sampler
from finetune.examples.sequence import RowMaker, collate
from finetune.latent.batch import StepBatch
from finetune.latent.distillation import distillation_loss, watch_layers
from finetune.latent.generation import AnswerSettings, answer_flops, generate_with_thoughts
from finetune.latent.lotus import Lotus
from finetune.latent.sequential import Sequential
from finetune.latent.thinking import Tokens
from finetune.method.curriculum import Cut
from finetune.run.rows import step_flops
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.gpt import LoopedGPT
from tests.support.latent_cases import assert_same_gradients, embeddings_by_definition, gradients, loss_of
from tests.unit.model.test_model import GPT2, LLAMA, build

TOKENIZER = Tokenizer.load("symbols:abcdefghijklmnopqrstuvwxyz")
A, EOS = TOKENIZER.encode("a")[0], TOKENIZER.eos_id
EXAMPLES = [  # chains shorter than the two stages, as long, and longer; a step longer than the slots that stand for it
    EncodedExample((A, A + 1), ((A + 2, A + 3),), (A + 4, A + 5, EOS), 1),
    EncodedExample((A + 6, A + 18), ((A + 7,), (A + 8, A + 9, A + 10)), (A + 4, A + 11, EOS), 1),
    EncodedExample((A + 12,), ((A + 13, A + 14), (A + 15,), (A + 16, A + 17)), (A + 4, A + 2, EOS), 1),
]
C, LOOPS = 2, 2


def config(method: dict[str, Any], effective_batch: int = 4, micro_batch: int = 2) -> FinetuneConfig:
    task = {"task": "prosqa", "num_examples": 1}
    return FinetuneConfig.model_validate(
        {
            "data": {"train": task, "validation": task, "tokenizer": "symbols:a"}, "method": method,
            "train": {"effective_batch": effective_batch, "micro_batch": micro_batch, "seq_len": 64},
            "curriculum": {
                "num_stages": 2, "thoughts_per_step": C, "first_stage_epochs": 1, "epochs_per_stage": 1,
                "uniform_prob": 0.0,
            },
        }
    )  # fmt: skip


def step_of(settings: FinetuneConfig, epoch: int, examples: list[EncodedExample] = EXAMPLES) -> StepBatch:
    maker = RowMaker(settings.chosen_method, settings.curriculum, True, TOKENIZER)
    return Sampler(examples, maker, settings, check_layout(settings, 1), 0).step(epoch, 0)


def rows_of(settings: FinetuneConfig, cut: Callable[[EncodedExample], Cut]) -> list[tuple[EncodedExample, Any]]:
    """Each example with its row as a batch of its own."""
    maker = RowMaker(settings.chosen_method, settings.curriculum, True, TOKENIZER)
    return [(example, collate([maker.row(example, cut(example))])) for example in EXAMPLES]


def mean_nll(model: LoopedGPT, states: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Of all supervised tokens of all rows."""
    total = torch.stack([loss_of(model, each, label) for each, label in zip(states, labels, strict=True)]).sum()
    return total / sum(int((label >= 0).sum()) for label in labels)


def codi(model: LoopedGPT, settings: FinetuneConfig, stage: int) -> Tensor:
    """Both cross-entropies, and the distance at the place before the answer: always all text removed."""
    cut = Cut(9, C * 2)
    student, teacher, labels, teacher_labels, distances = [], [], [], [], []
    maker = RowMaker(settings.chosen_method, settings.curriculum, True, TOKENIZER)
    for example, batch in rows_of(settings, lambda _: cut):
        other = collate([maker.teacher_row(example)])
        with watch_layers(model, batch.answer) as ours:
            student.append(Sequential().states(model, batch, C * 2)[0])
        with watch_layers(model, other.answer) as theirs:
            teacher.append(Tokens().states(model, other, 0)[0])
        labels, teacher_labels = [*labels, batch.labels[0]], [*teacher_labels, other.labels[0]]
        distances.append(distillation_loss(ours, theirs, batch.answer))
    nll = mean_nll(model, student, labels) + mean_nll(model, teacher, teacher_labels)
    return nll + 1.0 * torch.stack(distances).mean()


WRITTEN = {  # by stage and example, from each two slots; the answer where there is no step, at last all that remains
    1: [[(A + 2, A + 3)], [(A + 7,)], [(A + 13, A + 14)]],
    2: [
        [(A + 2, A + 3), (A + 4, A + 5)], [(A + 7,), (A + 8, A + 9, A + 10)], [(A + 13, A + 14), (A + 15,)],
    ],
    3: [
        [(A + 2, A + 3), (A + 4, A + 5)], [(A + 7,), (A + 8, A + 9, A + 10)],
        [(A + 13, A + 14), (A + 15, A + 16, A + 17)],
    ],
}  # fmt: skip
REMOVED = {1: 1, 2: 2, 3: 9}


def sim_cot(model: LoopedGPT, settings: FinetuneConfig, stage: int) -> Tensor:
    """Each step from its two thoughts, alone."""
    assert model.embedding is not None
    num_groups = min(stage, 2)
    states, labels, losses = [], [], []
    cases = rows_of(settings, lambda example: Cut(min(REMOVED[stage], len(example.steps)), C * num_groups))
    for number, (_, batch) in enumerate(cases):
        inputs = embeddings_by_definition(model, batch, 0, LOOPS)  # [1, s, d]
        states.append(model(batch.tokens, LOOPS, embeddings=inputs))
        labels.append(batch.labels[0])
        for group, text in enumerate(WRITTEN[stage][number]):
            start = batch.first_slot + group * C
            tokens = torch.tensor([[*text, EOS]])
            decoder = torch.cat((inputs[:, start : start + C], model.embedding(tokens)), dim=1)
            logits = model.logits(model(torch.zeros(decoder.shape[:2]).long(), LOOPS, embeddings=decoder))
            losses.append(torch.nn.functional.cross_entropy(logits[C - 1 : -1], tokens[0], reduction="sum"))
    return mean_nll(model, states, labels) + 0.7 * torch.stack(losses).mean()


def lotus(model: LoopedGPT, settings: FinetuneConfig, stage: int) -> Tensor:
    """Whole passes over a row, each with E + h at the slots; the tokens of steps are predicted one place before."""
    assert model.embedding is not None
    states, labels, slot_labels = [], [], []
    cases = rows_of(settings, lambda example: Cut(min(REMOVED[stage], len(example.steps)), C * min(stage, 2)))
    for number, (_, batch) in enumerate(cases):
        inputs = embedded = model.embedding(batch.tokens)
        for _ in range(3):
            hidden = model(batch.tokens, LOOPS, embeddings=inputs).view(embedded.shape)
            inputs = torch.where(batch.is_latent[..., None], embedded + hidden, embedded)
        states.append(model(batch.tokens, LOOPS, embeddings=inputs))
        labels.append(batch.labels[0])
        slot_labels.append(torch.full_like(batch.labels[0], -100))
        num_steps = len(EXAMPLES[number].steps)
        for group, text in enumerate(WRITTEN[stage][number][:num_steps]):
            for place, token in enumerate(text[:C]):
                slot_labels[-1][batch.first_slot + group * C + place - 1] = token
    return mean_nll(model, states, labels) + 0.3 * mean_nll(model, states, slot_labels)


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "by_definition"),
    [
        ({"name": "codi"}, codi),
        ({"name": "sim_cot", "step_weight": 0.7}, sim_cot),
        ({"name": "lotus", "refinements": 3, "step_weight": 0.3}, lotus),
    ],
    ids=["codi", "sim_cot", "lotus"],
)
def test_loss_and_gradients_of_a_step_are_those_of_the_formula(
    family: Any, stage: int, method: dict[str, Any], by_definition: Callable[[LoopedGPT, FinetuneConfig, int], Tensor]
) -> None:
    """Of all micro-batches of a step together, one of which is not full."""
    model, settings = build(family, num_loops=LOOPS, num_prelude_layers=1), config(method)
    step, objective = step_of(settings, epoch=stage), Objective(model, settings.method)
    assert len(step.micro_batches) == 2
    loss = torch.stack([objective(micro_batch, step)[0] for micro_batch in step.micro_batches]).sum()
    wanted = by_definition(model, settings, stage)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, wanted))


@pytest.mark.parametrize("name", ["codi", "sim_cot", "lotus"])
def test_without_slots_nothing_is_added_but_by_a_teacher(name: str) -> None:
    settings = config({"name": name})
    step, model = step_of(settings, epoch=0), build(LLAMA, num_loops=LOOPS)
    added = sum(
        float(Objective(model, settings.method)(micro_batch, step)[0].detach()) for micro_batch in step.micro_batches
    )
    plain = sum(
        float(
            micro_batch.batch.text_loss(model, Sequential().states(model, micro_batch.batch, micro_batch.num_slots))[1]
        )
        for micro_batch in step.micro_batches
    )
    assert (added == pytest.approx(plain / step.num_targets)) == (name != "codi")
    assert (step.added.targets > 0) == (name == "codi")


@pytest.mark.parametrize(
    "method",
    [
        {"name": "codi"},
        {"name": "sim_cot"},
        {"name": "lotus", "refinements": 3},
        {"name": "coconut", "jacobi_passes": 2},
    ],
    ids=lambda method: method["name"],
)
def test_flops_of_a_step_are_those_that_torch_counts(method: dict[str, Any]) -> None:
    """Rows of one length, so that there is no padding; the unfused kernel, which torch sees on a CPU. Attention to the
    question alone is counted over the whole square too."""
    examples = [
        EncodedExample((A, A + 1) * 20, ((A + number, A + 3, A + 4),) * 2, (A, A + 5, EOS), 1) for number in range(4)
    ]
    settings, model = config(method, 4, 4), build(LLAMA, num_loops=LOOPS)
    step, objective = step_of(settings, 3, examples), Objective(model, settings.method)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(step.micro_batches[0], step)[0].backward()
    assert counter.get_total_flops() == pytest.approx(step_flops(model.config, step), rel=0.08)


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("refinements", [0, 2])
def test_answers_with_latents_are_what_their_training_forward_predicts(family: Any, refinements: int) -> None:
    """Teacher-forced, and the passes of answering are counted as they are made."""
    model, settings = build(family, num_loops=LOOPS), config({"name": "lotus", "refinements": refinements})
    maker = RowMaker(settings.chosen_method, settings.curriculum, True, TOKENIZER)
    how = AnswerSettings(
        max_new_tokens=3, vocab_size=TOKENIZER.vocab_size, eos_id=-2, markers=maker.markers, num_slots=4,
        thinking=Lotus(refinements),
    )  # fmt: skip
    questions = [example.question for example in EXAMPLES]
    answers = generate_with_thoughts(model, [maker.markers.prompt(question) for question in questions], how)
    rows = [
        maker.row(EncodedExample(question, (), tuple(answer.text)), Cut(0, 4))
        for question, answer in zip(questions, answers, strict=True)
    ]
    batch = collate(rows)
    with torch.no_grad():
        logits = model.all_logits(Lotus(refinements).states(model, batch, 4).flatten(0, 1))
    logits[:, TOKENIZER.eot_id] = -torch.inf
    predicted = logits[batch.supervised, : TOKENIZER.vocab_size].argmax(-1).tolist()
    assert predicted == [token for answer in answers for token in answer.text]
    positions: list[int] = []
    with model.register_forward_pre_hook(lambda _, inputs: positions.append(inputs[0].shape[1])):
        (one,) = generate_with_thoughts(model, [maker.markers.prompt(questions[0])], how)
    count = Lotus(refinements).passes(3, 4, 4, is_stopped=False)
    assert positions[: 2 + refinements] == [3, *[number for number, _ in count.tried], 4 + 1]
    per_latent = answer_flops(model.config, 3, how, one) - answer_flops(model.config, 3, how_without(how), one)
    assert per_latent > 0


def how_without(settings: AnswerSettings) -> AnswerSettings:
    """The same without latents."""
    return AnswerSettings(
        max_new_tokens=settings.max_new_tokens, vocab_size=settings.vocab_size, eos_id=settings.eos_id,
        markers=settings.markers, num_slots=0, thinking=settings.thinking,
    )  # fmt: skip
