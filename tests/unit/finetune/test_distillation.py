"""Self-distillation: the distance is that of its formula, its gradient reaches the student alone, and watching changes
nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.distillation import WatchedStates, distillation_loss, watch_layers
from finetune.latent.jacobi import Jacobi
from finetune.latent.sequential import Sequential
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import Layer
from tests.support.latent_cases import SHAPES, gradients, loss_of, make_batch, num_slots_of
from tests.unit.model.test_model import GPT2, LLAMA, build

STUDENT, TEACHER = make_batch([2, 3], [3, 2], [2, 3]), make_batch([2, 3], [0, 0], [5, 6])


def watched(
    model: LoopedGPT, batch: LatentBatch, num_loops: int, places: Tensor | None = None
) -> tuple[Tensor, WatchedStates]:
    places = batch.answer if places is None else places
    assert places is not None
    with watch_layers(model, places) as found:
        states = Sequential().states(model, batch, num_slots_of(batch), num_loops)
    return states, found


def by_rows(model: LoopedGPT, batch: LatentBatch, num_loops: int) -> Tensor:
    """States [applications, b, s, d] of every layer application, from the outputs of one pass with all embeddings
    known."""
    states = Sequential().states(model, batch, num_slots_of(batch), num_loops)
    assert model.embedding is not None
    rows = []
    for row, first in enumerate(batch.first_token.tolist()):
        embeddings = torch.where(
            batch.is_latent[row, first:, None],
            states[row].roll(1, 0)[first:],
            model.embedding(batch.tokens[row, first:]),
        )
        outputs: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
            for layer in model.modules()
            if isinstance(layer, Layer)
        ]
        model(batch.tokens[row : row + 1, first:], num_loops, embeddings=embeddings[None])
        for handle in handles:
            handle.remove()
        padding = outputs[0].new_zeros(len(outputs), first, outputs[0].shape[-1])
        rows.append(torch.cat((padding, torch.stack(outputs)), dim=1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("shape", ["no thought, ragged", "mixed numbers of thoughts"])
def test_watching_finds_every_application_of_every_layer_at_any_position(family: Any, shape: str) -> None:
    model, batch = build(family, num_prelude_layers=1, num_coda_layers=1), make_batch(*SHAPES[shape])
    wanted = by_rows(model, batch, 3)
    assert len(wanted) == 1 + 2 * 3 + 1
    for place in range(batch.tokens.shape[1]):
        places = torch.full((len(batch.tokens),), place)
        _, found = watched(model, batch, 3, places)
        real = batch.first_token <= place
        assert sorted(found) == list(range(len(wanted)))
        for number, states in found.items():
            torch.testing.assert_close(states[real], wanted[number, real, place], rtol=1e-10, atol=1e-10)


def test_the_distance_is_that_of_the_formula() -> None:
    model = build(LLAMA, num_prelude_layers=1)
    (_, student), (_, teacher) = watched(model, STUDENT, 2), watched(model, TEACHER, 2)
    assert STUDENT.answer is not None
    distances = []
    for row in range(2):
        for number in student:
            ours, theirs = student[number][row], teacher[number][row]
            distances.append((ours - theirs).abs().mean() / theirs.std())
    wanted = torch.stack(distances).view(2, -1).mean(1)
    torch.testing.assert_close(distillation_loss(student, teacher, STUDENT.answer), wanted.sum(), rtol=1e-12, atol=0)
    only_second = distillation_loss(student, teacher, torch.tensor([-1, 3]))
    torch.testing.assert_close(only_second, wanted[1], rtol=1e-12, atol=0)


def test_the_teacher_gets_no_gradient() -> None:
    model, teacher_model = build(LLAMA, num_loops=2), build(LLAMA, num_loops=2)
    (_, student), (_, teacher) = watched(model, STUDENT, 2), watched(teacher_model, TEACHER, 2)
    assert STUDENT.answer is not None
    assert all(states.requires_grad for states in teacher.values())
    loss = distillation_loss(student, teacher, STUDENT.answer)
    assert gradients(teacher_model, loss) == {}
    model.zero_grad()
    found = gradients(model, loss)
    assert min(gradient.abs().max().item() for name, gradient in found.items() if name.startswith("loop")) > 1e-6


def test_a_student_with_the_teachers_text_is_at_distance_zero() -> None:
    model = build(GPT2, num_loops=2)
    (_, student), (_, teacher) = watched(model, TEACHER, 2), watched(model, TEACHER, 2)
    assert TEACHER.answer is not None
    assert distillation_loss(student, teacher, TEACHER.answer) == 0


def test_watching_changes_no_bit() -> None:
    """So weight 0 is the plain method: the same states, and the same gradients of a loss on them."""
    model = build(LLAMA, num_loops=2)
    plain, (seen, _) = Sequential().states(model, STUDENT, 3), watched(model, STUDENT, 2)
    assert torch.equal(plain, seen)
    ours, theirs = (
        gradients(model, loss_of(model, states.flatten(0, 1), STUDENT.labels.flatten())) for states in (seen, plain)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(layer._forward_hooks for layer in model.modules())


def test_refining_passes_are_not_watched() -> None:
    model = build(LLAMA, num_loops=2)
    assert STUDENT.answer is not None
    with watch_layers(model, STUDENT.answer) as parallel:
        Jacobi(2).states(model, STUDENT, 3)
    _, sequential = watched(model, STUDENT, 2)
    for number, states in sequential.items():
        torch.testing.assert_close(parallel[number], states, rtol=1e-10, atol=1e-10)


def test_what_cannot_be_watched_is_refused() -> None:
    assert TEACHER.answer is not None
    with (
        pytest.raises(AssertionError, match="watched twice"),
        watch_layers(build(LLAMA, recompute="loop"), TEACHER.answer),
    ):
        pass
    model = build(LLAMA)
    with pytest.raises(AssertionError, match="only a latent forward"), watch_layers(model, TEACHER.answer):
        model(TEACHER.tokens)
    moved = replace(TEACHER, answer=None).to(torch.device("cpu"))
    assert moved.answer is None
