"""The evaluation harness on our models: as its own adapter for transformers scores the export, all depths in one
pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from pretrain.config.run import ParallelSection
from pretrain.eval.harness import LoopedLM
from pretrain.eval.scorer import Scorer
from pretrain.generation.generate import generate
from pretrain.generation.sampling import Generation
from pretrain.hf.exporting import export_run
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.groups import Groups, make_groups, start_world
from pretrain.run.trained_model import TrainedModel, load_trained_model
from tests.support.corpus import make_tokenizer
from tests.unit.hf.test_convert import SEQ_LEN, make_run

CONTEXTS = ("the loop runs", "", "north of the old river and in deep", "a block of tokens folds again ", "x")
CONTINUATIONS = (" again", "deep", " the stream", "and runs in the deep old river", "!")
LOOPS = (3, 1, 2)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    device = start_world()
    yield make_groups(ParallelSection(), device)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    make_tokenizer(path)
    return path


def load(tmp_path: Path, tokenizer: Path, model: dict[str, Any]) -> tuple[Path, TrainedModel]:
    run = make_run(tmp_path / "run", tokenizer, model)
    return run, load_trained_model(run, torch.device("cpu"))


def adapter(
    trained: TrainedModel, groups: Groups, *, loops: tuple[int, ...] = (1,), batch_size: int = 3, add_bos: bool = True
) -> LoopedLM:
    scorer = Scorer(trained.model, groups, batch_size=batch_size)
    return LoopedLM(scorer, trained.tokenizer, loops, max_length=SEQ_LEN, add_bos=add_bos)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=number) for number, each in enumerate(arguments)]  # type: ignore[arg-type]


def pairs() -> list[Instance]:
    return requests(
        "loglikelihood", *((context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS)
    )


LONG = "the old river runs north and the deep stream folds again in the block of tokens " * 4
ROLLING = (("the loop runs in the river",), (LONG,), ("x",))


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize(
    "model", [{}, {"norm": "layer", "positions": "learned", "activation": "gelu", "bias": "all", "tied_head": True}]
)
def test_an_export_scores_the_same_in_the_adapter_for_transformers(
    tmp_path: Path, tokenizer: Path, groups: Groups, model: dict[str, Any], add_bos: bool
) -> None:
    run, trained = load(tmp_path, tokenizer, model)
    export_run(run=run, out=tmp_path / "out")
    theirs = HFLM(
        pretrained=str(tmp_path / "out"),
        batch_size=4,
        device="cpu",
        max_length=SEQ_LEN,
        add_bos_token=add_bos,
        dtype="float32",
    )
    ours = adapter(trained, groups, add_bos=add_bos)
    for mine, other in zip(ours.loglikelihood(pairs(), True), theirs.loglikelihood(pairs(), True), strict=True):
        assert mine[0] == pytest.approx(other[0], rel=1e-5) and mine[1] == other[1]
    rolling = requests("loglikelihood_rolling", *ROLLING)
    values = ours.loglikelihood_rolling(rolling)
    assert values == pytest.approx(theirs.loglikelihood_rolling(rolling, True), rel=1e-5)
    without = adapter(trained, groups, add_bos=not add_bos).loglikelihood_rolling(rolling)
    assert all(abs(value - other) > 0.1 for value, other in zip(values, without, strict=True)), "a bos is scored"
    # Of bytes that are no UTF-8, which random weights like to say, the two decoders write different replacement
    # characters.
    trained.tokenizer.decode = lambda ids: theirs.tokenizer.decode(list(ids), skip_special_tokens=True)  # pyright: ignore[reportAttributeAccessIssue]
    settings = {"until": [" the", "\n"], "max_gen_toks": 10, "do_sample": False}
    texts = requests("generate_until", *((context, settings) for context in CONTEXTS if context))
    assert ours.generate_until(texts) == theirs.generate_until(texts, True)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_all_depths_in_one_pass_are_those_of_one_run_each(
    tmp_path: Path, tokenizer: Path, groups: Groups, batch_size: int
) -> None:
    _, trained = load(tmp_path, tokenizer, {"num_loop_layers": 2, "num_coda_layers": 1, "loop": {"injection": "add"}})
    together = adapter(trained, groups, loops=LOOPS, batch_size=batch_size)
    passes = count_passes(trained.model)
    values, texts = {}, {}
    settings = {"until": ["\n"], "max_gen_toks": 8}
    prompts = requests("generate_until", *((context, settings) for context in CONTEXTS if context))
    for num_loops in LOOPS:
        with together.at(num_loops):
            values[num_loops] = [
                *together.loglikelihood(pairs(), True),
                *together.loglikelihood_rolling(requests("r", *ROLLING)),
            ]
    # each loop as often as the first
    assert set(passes) == set(range(max(LOOPS))) and len({passes.count(loop) for loop in passes}) == 1
    for num_loops in LOOPS:
        with together.at(num_loops):
            texts[num_loops] = together.generate_until(prompts)
        alone = adapter(trained, groups, loops=(num_loops,))
        expected = [*alone.loglikelihood(pairs(), True), *alone.loglikelihood_rolling(requests("r", *ROLLING))]
        for mine, other in zip(values[num_loops], expected, strict=True):
            assert mine == pytest.approx(other, rel=1e-5)
        assert texts[num_loops] == alone.generate_until(prompts)
    assert values[1] != values[3]


def count_passes(model: LoopedGPT) -> list[int]:
    """Numbers of the loops that the model is run through, as they come."""
    seen: list[int] = []

    def run_loop(states: Tensor, context: Any, loop: int) -> Tensor:
        seen.append(loop)
        return LoopedGPT.run_loop(model, states, context, loop)

    model.run_loop = run_loop
    return seen


def test_generated_text_ends_before_the_first_stop_string(tmp_path: Path, tokenizer: Path, groups: Groups) -> None:
    _, trained = load(tmp_path, tokenizer, {})
    ours = adapter(trained, groups)
    prompt = [trained.tokenizer.bos_id, *trained.tokenizer.encode("the loop")]
    settings = Generation(max_new_tokens=12, vocab_size=trained.tokenizer.vocab_size, end_ids=trained.tokenizer.end_ids)
    whole = trained.tokenizer.decode(generate(trained.model, [prompt], settings)[0])
    stop = whole[3:5]
    cut = ours.generate_until(requests("generate_until", ("the loop", {"until": stop, "max_gen_toks": 12})))
    assert cut == [whole.split(stop)[0]]
