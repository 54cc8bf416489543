"""Every design of the loop in the exported class: the same logits, with and without a cache, from files that stand
alone."""

import ast

import pytest
import torch

from pretrain.hf.modeling_looped_gpt import PLAIN_LOOP
from pretrain.hf.travelling import loop_module
from pretrain.model.loop.config import LoopSection
from tests.support.loop_designs import DESIGNS
from tests.unit.hf.test_modeling_looped_gpt import assert_close, exported
from tests.unit.model.test_loop_variants import shaken
from tests.unit.model.test_model import SEQ, VOCAB, random_tokens


@pytest.mark.parametrize("name", [name for name in DESIGNS if name != "own"])
def test_every_design_of_the_loop_is_the_same_model(name: str) -> None:
    looped = shaken(name)
    model, tokens = exported(looped), random_tokens()
    for num_loops in (1, 3):
        expected = looped.logits(looped(tokens, num_loops)).view(3, SEQ, -1)
        assert_close(model(tokens, num_loops=num_loops).logits, expected)
    whole = model.generate(tokens, max_new_tokens=4, do_sample=False, num_loops=3)
    without_cache = model.generate(tokens, max_new_tokens=4, do_sample=False, num_loops=3, use_cache=False)
    assert torch.equal(whole, without_cache)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("name", ["keys of the first", "keys of every second", "window", "deep loop"])
def test_recomputation_keeps_the_gradients(name: str) -> None:
    """Where loops share keys and values too: gradients reach the loop that computed them, as in training."""
    looped, tokens = shaken(name), random_tokens()
    weights = torch.randn(VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    (looped.logits(looped(tokens, 3)) * weights).mean().backward()
    model = exported(looped).train()
    calls: list[int] = []
    model.loop[0].attention.register_forward_hook(lambda *_: calls.append(0))
    for is_reentrant in (None, False, True):
        if is_reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": is_reentrant})
        model.zero_grad()
        calls.clear()
        (model(tokens, num_loops=3).logits * weights).mean().backward()
        assert len(calls) == (3 if is_reentrant is None else 6)  # forward, and again for the backward pass
        for key, parameter in looped.named_parameters():
            found = model.get_parameter(key).grad
            torch.testing.assert_close(found, parameter.grad, rtol=1e-8, atol=1e-10, msg=f"{key} {is_reentrant}")


def test_a_plain_loop_is_the_default_of_both() -> None:
    choices = {name: value for name, value in LoopSection().model_dump().items() if not isinstance(value, dict)}
    assert choices == PLAIN_LOOP


def test_no_name_of_the_travelling_module_stands_for_two_things() -> None:
    tree = ast.parse(loop_module())
    names = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    assert len(set(names)) == len(names) > 30
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in imported if module and module.startswith("pretrain")]
