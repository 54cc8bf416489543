"""The evaluation harness on our models: as its own adapter for transformers scores the export, all depths in one pass, restartable."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from pretrain.checkpoint.run import open_checkpoint
from pretrain.config import ParallelSection, RunConfig
from pretrain.eval.harness import LoopedLM
from pretrain.eval.sampling import Generation, generate
from pretrain.eval.scorer import Scorer
from pretrain.hf.exporting import ExportSettings, export_run
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.groups import Groups, make_groups, start_world
from pretrain.trained_model import TrainedModel, load_trained_model
from tests.unit.corpus import make_tokenizer
from tests.unit.test_convert import SEQ_LEN, make_run

ROOT = Path(__file__).parents[2]
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


def adapter(trained: TrainedModel, groups: Groups, *, loops: tuple[int, ...] = (1,), batch_size: int = 3, add_bos: bool = True) -> LoopedLM:
    scorer = Scorer(trained.model, groups, batch_size=batch_size)
    return LoopedLM(scorer, trained.tokenizer, loops, max_length=SEQ_LEN, add_bos=add_bos)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=number) for number, each in enumerate(arguments)]  # type: ignore[arg-type]


def pairs() -> list[Instance]:
    return requests("loglikelihood", *((context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS))


LONG = "the old river runs north and the deep stream folds again in the block of tokens " * 4
ROLLING = (("the loop runs in the river",), (LONG,), ("x",))


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("model", [{}, {"norm": "layer", "positions": "learned", "activation": "gelu", "bias": "all", "tied_head": True}])
def test_an_export_scores_the_same_in_the_adapter_for_transformers(
    tmp_path: Path, tokenizer: Path, groups: Groups, model: dict[str, Any], add_bos: bool
) -> None:
    run, trained = load(tmp_path, tokenizer, model)
    export_run(ExportSettings(run=run, out=tmp_path / "out"))
    theirs = HFLM(pretrained=str(tmp_path / "out"), batch_size=4, device="cpu", max_length=SEQ_LEN, add_bos_token=add_bos, dtype="float32")
    ours = adapter(trained, groups, add_bos=add_bos)
    for mine, other in zip(ours.loglikelihood(pairs(), True), theirs.loglikelihood(pairs(), True), strict=True):
        assert mine[0] == pytest.approx(other[0], rel=1e-5) and mine[1] == other[1]
    rolling = requests("loglikelihood_rolling", *ROLLING)
    if not add_bos:  # with a bos the other adapter counts it twice: once of the tokenizer, once of the first window
        assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling, True), rel=1e-5)
    # Of bytes that are no UTF-8, which random weights like to say, the two decoders write different replacement characters.
    trained.tokenizer.decode = lambda ids: theirs.tokenizer.decode(list(ids), skip_special_tokens=True)  # pyright: ignore[reportAttributeAccessIssue]
    settings = {"until": [" the", "\n"], "max_gen_toks": 10, "do_sample": False}
    texts = requests("generate_until", *((context, settings) for context in CONTEXTS if context))
    assert ours.generate_until(texts) == theirs.generate_until(texts, True)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_all_depths_in_one_pass_are_those_of_one_run_each(tmp_path: Path, tokenizer: Path, groups: Groups, batch_size: int) -> None:
    _, trained = load(tmp_path, tokenizer, {"num_loop_layers": 2, "num_coda_layers": 1, "input_injection": "add"})
    together = adapter(trained, groups, loops=LOOPS, batch_size=batch_size)
    passes = count_passes(trained.model)
    values, texts = {}, {}
    settings = {"until": ["\n"], "max_gen_toks": 8}
    prompts = requests("generate_until", *((context, settings) for context in CONTEXTS if context))
    for num_loops in LOOPS:
        with together.at(num_loops):
            values[num_loops] = [*together.loglikelihood(pairs(), True), *together.loglikelihood_rolling(requests("r", *ROLLING))]
    assert set(passes) == set(range(max(LOOPS))) and len({passes.count(loop) for loop in passes}) == 1  # each loop as often as the first
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
    settings = Generation(max_new_tokens=12, vocab_size=trained.tokenizer.vocab_size, eos_id=trained.tokenizer.eos_id)
    whole = trained.tokenizer.decode(generate(trained.model, [prompt], settings)[0])
    stop = whole[3:5]
    cut = ours.generate_until(requests("generate_until", ("the loop", {"until": stop, "max_gen_toks": 12})))
    assert cut == [whole.split(stop)[0]]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/eval_depth.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_command_writes_rows_once_and_names_what_is_wrong(tmp_path: Path, tokenizer: Path) -> None:
    run = make_run(tmp_path / "run", tokenizer, {"num_loop_layers": 2})
    wanted = ("--run", run, "--num-examples", 3, "--offline", "--num-loops", "1,2")
    first = command(*wanted, "--tasks", "variable_assignment_code_depth0,svamp")
    assert first.returncode == 0, first.stderr
    assert "skipped svamp: its files are read from a data directory, and none was given" in first.stderr
    file = run / "eval" / "depth.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["task"], row["task_group"], row["metric"], row["num_loops"], row["effective_depth"]) for row in rows] == [
        ("variable_assignment_code_depth0", "primitives", "exact_match", loops, 2 * loops) for loops in (1, 2)
    ]
    assert all(row["num_examples"] == 3 and row["run"] == "run" and row["stderr"] is not None for row in rows)
    again = command(*wanted, "--tasks", "primitives")
    assert again.returncode == 0 and "has variable_assignment_code_depth0 already" in again.stderr
    assert len(file.read_text().splitlines()) == 2 * 4
    for arguments, message in (
        (("--run", run, "--tasks", "svam"), "error: task svam: no such task or group, did you mean svamp?"),
        (("--run", tmp_path / "absent"), "no checkpoints there"),
        (("--run", run), "error: run run is trained on no task: name some to evaluate it on"),
    ):
        bad = command(*arguments, "--offline")
        assert bad.returncode == 2 and message in bad.stderr and "Traceback" not in bad.stderr


def test_the_task_of_a_run_is_the_default(tmp_path: Path) -> None:
    hops = {"task": "p_hop", "parameters": {"num_hops": 2, "length": 12}, "supervise": "prefixes"}
    data = {"tokenizer": "symbols:abcd", "sources": [hops]}
    overrides = ["run.name=hops", f"run.root={tmp_path}", "train.seq_len=13", f"data={json.dumps(data)}", "logging.wandb=disabled"]
    shape = ["model.vocab_size=16", "model.hidden_size=16", "model.num_attention_heads=2", "model.ffn_size=16", "model.num_loop_layers=1"]
    settings = ["train.steps=2", "train.global_batch=4", "train.micro_batch=4", "optimizer.warmup_steps=0", "validation.every=0"]
    (tmp_path / "run.yaml").write_text("train: {precision: fp32}\n")
    trained = subprocess.run(
        [sys.executable, "-m", "pretrain.train", "--config", str(tmp_path / "run.yaml"), *overrides, *shape, *settings],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    reader, _ = open_checkpoint(tmp_path / "hops")
    assert RunConfig.model_validate(reader.meta["config"]).data.sources[0].task == "p_hop"
    done = command("--run", tmp_path / "hops", "--num-loops", "1,2", "--num-examples", 20)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "hops" / "eval" / "depth.jsonl").read_text().splitlines()]
    assert [(row["task"], row["metric"], row["num_loops"]) for row in rows] == [("p_hop", "acc", 1), ("p_hop", "acc", 2)]
    assert {row["num_examples"] for row in rows} == {20}
