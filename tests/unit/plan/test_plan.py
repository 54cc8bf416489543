"""The plan against measurement: bytes that autograd and the engine hold."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from pretrain.config.loop_loss import LoopLossSection
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.device.hardware import DTYPES
from pretrain.model.count import count, train_flops_per_token
from pretrain.model.gpt import LoopedGPT
from pretrain.model.kernels import blocked_attention, head_loss
from pretrain.model.loop.recurrence import Stage
from pretrain.model.loop_loss import ShortRun
from pretrain.model.loss import loss_sums
from pretrain.model.weights import stage_weights
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups, start_world
from pretrain.plan import memory
from pretrain.plan.memory import Activations
from pretrain.plan.plan import Plan, make_plan
from pretrain.plan.text import plan_rows
from tests.support.every_loop import loss_of_every_loop
from tests.support.loop_designs import MODELS
from tests.support.memory import allocations, measured_evaluation

GPT2 = {"norm": "layer", "positions": "learned", "activation": "gelu", "bias": "all", "tied_head": True}
LLAMA = {"num_key_value_heads": 2}
ROOT = Path(__file__).parents[3]


def config(model: dict, **sections: dict) -> RunConfig:
    """A small configuration: many more tokens than width, as in a real run, so that activations outweigh weights."""
    small = {
        "vocab_size": 96,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "ffn_size": 192,
        "num_loop_layers": 2,
        "num_loops": 3,
    }
    train = {"seq_len": 256, "micro_batch": 4, "global_batch": 16, **sections.pop("train", {})}
    return RunConfig.model_validate({"model": {**small, **model}, "train": train, **sections})


def text_of(plan: Plan) -> str:
    return "\n".join(text for _, text in plan_rows(plan))


def build(run: RunConfig) -> LoopedGPT:
    built = LoopedGPT(run.model, run.train.seq_len, recompute=run.train.recompute)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(0.01)
    built.to(DTYPES[run.train.precision])
    for parameter in built.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return built


def measured_bytes(run: RunConfig) -> tuple[int, int]:
    """Bytes allocated when one micro-batch has gone forward, and at the worst moment of its backward pass, by torch's
    profiler."""
    built, tokens = build(run), torch.zeros(run.train.micro_batch, run.train.seq_len, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        if run.train.loop_loss.is_of_every_loop:
            short = ShortRun(last_loop=1, weight=0.1, consistency_weight=0.1)
            is_short = run.train.loop_loss.over == "consistent"
            loss = loss_of_every_loop(built, tokens, run.model.num_loops, short=short if is_short else None)
        else:
            loss, _ = loss_sums(built, built(tokens, backprop_loops=run.train.backprop_loops), tokens)
        with record_function("backward"):
            loss.backward()
    assert trace.profiler is not None and trace.profiler.kineto_results is not None
    events: list[Any] = trace.profiler.kineto_results.events()
    (start,) = (event.start_ns() for event in events if event.name() == "backward")
    kept = held = peak = 0
    for time, size in allocations(trace):
        held += size
        peak = max(peak, held)
        kept = held if time < start else kept
    return kept, peak


@pytest.mark.parametrize(
    "shape",
    [
        LLAMA,
        {**LLAMA, "norm": "layer"},
        GPT2,
        {**LLAMA, "norm_place": "both", "loop": {"final_norm": "passes"}},
        {**LLAMA, "norm_place": "around", "loop": {"final_norm": "coda"}},
        {**LLAMA, "norm_place": "sum"},
        {**LLAMA, "loop": {"keys": "first"}},
        {**LLAMA, "loop": {"keys": "first", "keys_window": 16}},
        {**LLAMA, "loop": {"residual": "hyper"}},
    ],
    ids=[
        "llama",
        "llama with LayerNorm",
        "gpt-2",
        "ouro",
        "huginn",
        "post-norm",
        "shared keys",
        "window",
        "hyper-connections",
    ],
)
@pytest.mark.parametrize("recompute", ["none", "selective", "loop", "layer", "segment"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_those_that_torch_allocates(
    shape: dict, recompute: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_attention, "SCRATCH_ELEMENTS", 2**14)  # the usual some MiB would drown so small a model
    run = config(
        {**shape, "num_prelude_layers": 1, "num_coda_layers": 1}, train={"recompute": recompute, "precision": precision}
    )
    plan = Activations(config=run)
    kept, peak = measured_bytes(run)
    assert plan.peak(4, 3) == pytest.approx(kept, rel=0.1)
    assert plan.peak(4, 3) + plan.working == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("recompute", ["none", "loop", "segment"])
def test_a_loss_of_every_loop_keeps_a_gradient_of_each_and_no_logits(recompute: str) -> None:
    run = config({"num_coda_layers": 1}, train={"recompute": recompute, "precision": "fp32"})
    every = run.model_copy(update={"train": run.train.model_copy(update={"loop_loss": LoopLossSection(over="every")})})
    plans = [Activations(config=each) for each in (run, every)]
    (kept, peak), (kept_of_every, peak_of_every) = map(measured_bytes, (run, every))
    assert plans[1].peak(4, 3) - plans[0].peak(4, 3) == 2 * plans[0].state
    assert kept_of_every - kept == pytest.approx(2 * plans[0].state, rel=0.01)
    assert peak_of_every - peak == pytest.approx(2 * plans[0].state, rel=0.01)


def test_a_short_run_keeps_its_coda_until_the_last_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_attention, "SCRATCH_ELEMENTS", 2**14)
    run = config({"num_coda_layers": 1}, train={"precision": "fp32"})
    short = run.model_copy(
        update={"train": run.train.model_copy(update={"loop_loss": LoopLossSection(over="consistent")})}
    )
    plan, kept_by_plain = Activations(config=short), Activations(config=run).peak(4, 3)
    kept, peak = measured_bytes(short)
    assert plan.peak(4, 3) - kept_by_plain == plan.state and plan.peak(4, 3) == pytest.approx(kept, rel=0.1)
    assert plan.peak(4, 3) + plan.working == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("recompute", ["none", "loop", "layer", "segment"])
def test_loops_without_gradient_hold_no_activations(recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_attention, "SCRATCH_ELEMENTS", 2**14)
    model = {**LLAMA, "num_prelude_layers": 1, "num_loops": 6, "loop": {"injection": "add"}}
    cut, full = (
        config(model, train={"recompute": recompute, "precision": "fp32", "backprop_loops": loops})
        for loops in (2, None)
    )
    plan = Activations(config=cut)
    share = {"none": 0.55, "loop": 0.9, "layer": 0.8, "segment": 1.0}[recompute]
    assert plan.peak(4, 6) <= share * Activations(config=full).peak(4, 6)
    kept, peak = measured_bytes(cut)
    assert plan.peak(4, 6) == pytest.approx(kept, rel=0.1)
    assert plan.peak(4, 6) + plan.working == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("rows", [2048, 32], ids=["one block of logits", "many blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_working_space_of_the_loss_is_that_which_torch_allocates(
    rows: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (head_loss, memory):
        monkeypatch.setattr(module, "LOSS_BLOCK_TOKENS", rows)
    run = config({"vocab_size": 4096, "num_loops": 1}, train={"precision": precision, "seq_len": 64})
    plan = Activations(config=run)
    _, peak = measured_bytes(run)
    assert plan.working > 0.25 * peak
    assert plan.peak(4, 1) + plan.working == pytest.approx(peak, rel=0.1)


@pytest.fixture
def world_of_one() -> Iterator[torch.device]:
    device = start_world()
    yield device
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [LLAMA, GPT2, {"loop": {"injection": "add"}}], ids=["llama", "gpt-2", "injection"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("vocab_size", [96, 4096], ids=["layers", "logits"])
def test_an_evaluation_holds_what_torch_allocates(
    shape: dict, precision: str, vocab_size: int, world_of_one: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_attention, "SCRATCH_ELEMENTS", 2**14)
    for module in (head_loss, memory):
        monkeypatch.setattr(module, "LOSS_BLOCK_TOKENS", 256)
    run = config({**shape, "num_coda_layers": 1, "vocab_size": vocab_size}, train={"precision": precision})
    measured = measured_evaluation(run, 3, make_groups(run.parallel, world_of_one))
    assert Activations(config=run).evaluation(3) == pytest.approx(measured, rel=0.1)


def num_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the distinct storages behind `tensors`."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(
    ("shape", "precision", "name"),
    [
        (LLAMA, "bf16", "adamw"),
        (GPT2, "fp32", "adamw"),
        (GPT2, "bf16", "adafactor"),
        (LLAMA, "fp64", "adafactor"),
        (GPT2, "bf16", "muon"),
    ],
)
def test_weights_gradients_and_optimizer_are_those_of_the_engine(
    shape: dict, precision: str, name: str, world_of_one: torch.device
) -> None:
    run = config(shape, train={"precision": precision, "seq_len": 16, "global_batch": 4}, optimizer={"name": name})
    engine = Engine(run, make_groups(run.parallel, world_of_one), Separators(bos_id=1, eos_id=2))
    engine.train_step(torch.randint(2, run.model.vocab_size, (4, 2, 16)), run.model.num_loops, lr=1e-3)
    assert engine.ring.how_far() == "1 of 1 micro-batches begun"
    inner: torch.optim.Optimizer = engine.optimizer.inner  # type: ignore[attr-defined]
    weights = list(engine.optimizer.names)
    buffers: list[Any] = engine.optimizer.ddp.buffers  # type: ignore[assignment]
    gradients = [buffer.grad_data for buffer in buffers]
    masters: list[torch.Tensor] = [parameter for group in inner.param_groups for parameter in group["params"]]
    moments = [value for state in inner.state.values() for key, value in state.items() if key != "step"]
    everything = [*weights, *gradients, *masters, *moments, *(master.grad for master in masters)]
    (stage,) = make_plan(run, 1).stages
    assert stage.weights == pytest.approx(num_bytes(weights), rel=0.001)  # Megatron pads its buffers
    assert stage.gradients == pytest.approx(num_bytes(gradients), rel=0.001)
    assert stage.weights + stage.gradients + stage.optimizer == pytest.approx(num_bytes(everything), rel=0.001)


@pytest.mark.parametrize("shape", [LLAMA, GPT2, {"num_prelude_layers": 1, "num_coda_layers": 2}])
@pytest.mark.parametrize("num_stages", [1, 2])
def test_parameters_of_a_stage_are_those_of_the_module(shape: dict, num_stages: int) -> None:
    run = config(shape)
    for index in range(num_stages):
        stage = Stage(index=index, count=num_stages)
        built = LoopedGPT(run.model, run.train.seq_len, stage=stage)
        numel = sum(parameter.numel() for parameter in built.parameters())
        assert count(stage_weights(run.model, run.train.seq_len, stage).values()) == numel


# --- the plan as a whole ----------------------------------------------------------------------------------------------


def test_plan_of_a_ring_adds_up() -> None:
    run = config(
        {"num_loop_layers": 4, "num_prelude_layers": 1},
        parallel={"tensor": 2, "pipeline": 2, "sequence": True},
        train={"micro_batch": 2},
    )
    plan = make_plan(run, 16)
    assert (plan.layout.data_parallel, plan.layout.micro_batches) == (4, 2)
    assert sum(stage.parameters for stage in plan.stages) == sum(plan.parameters.values())
    assert plan.worst_stage.total == max(stage.total for stage in plan.stages)
    assert plan.balance > 1
    text = text_of(plan)
    assert f"{sum(plan.parameters.values()):,}" in text
    assert "13 = prelude 1 + 4 layers × 3 loops + coda 0" in text
    assert "16 = tensor 2 × pipeline 2 × data 4, sequence parallel" in text
    assert f"{1 / 7:.1%} at 3 loops" in text


def test_what_an_evaluation_holds_counts_where_it_is_more_than_training() -> None:
    def plan(every: int) -> Plan:
        model = {"num_loop_layers": 8, "num_loops": 1, "ffn_size": 64, "loop": {"injection": "add"}}
        train = {"micro_batch": 4, "global_batch": 128, "recompute": "layer"}
        return make_plan(config(model, train=train, parallel={"pipeline": 8}, validation={"every": every}), 8)

    training, both = plan(0).stages[-2], plan(1).stages[-2]
    assert training.evaluation == 0 and both.evaluation > both.activations + both.working
    assert both.total - training.total == both.evaluation - both.activations - both.working
    assert f" {both.total / 2**30:.3f}" in text_of(plan(1)) and "evaluation takes the place" in text_of(plan(1))


def test_more_ranks_hold_less_each() -> None:
    def worst(world_size: int, change: Callable[[dict], None] = lambda parallel: None) -> float:
        parallel: dict = {}
        change(parallel)
        return make_plan(
            config({"num_loop_layers": 4}, parallel=parallel, train={"micro_batch": 1}), world_size
        ).worst_stage.total

    alone = worst(1)
    assert worst(4) < alone  # the optimizer is sharded
    assert worst(2, lambda parallel: parallel.update(tensor=2)) < alone
    assert worst(2, lambda parallel: parallel.update(tensor=2, sequence=True)) < worst(
        2, lambda parallel: parallel.update(tensor=2)
    )


def test_drawn_loops_plan_the_mean_of_the_work_and_the_most_of_the_memory() -> None:
    drawn = {"loop_sampling": {"distribution": "uniform", "minimum": 1, "maximum": 5}}
    plan, fixed, deepest = (
        make_plan(config({"num_loops": loops}, train=train), 1) for loops, train in ((3, drawn), (3, {}), (5, {}))
    )
    assert plan.train_flops_per_token == fixed.train_flops_per_token
    assert plan.worst_stage.total == deepest.worst_stage.total > fixed.worst_stage.total
    assert "at the mean of 3 loops" in text_of(plan)


@pytest.mark.parametrize("name", MODELS)
def test_a_fixed_loop_count_is_planned_as_it_is_counted(name: str) -> None:
    """In every design, with each kind of loss and gradient: nothing about loops is taken to be linear that is not."""
    losses, planned = ({"over": over} for over in ("last", "every", "expected", "consistent")), 0
    for loss, loops, backprop in itertools.product(losses, range(1, 6), (None, 2)):
        try:
            run = config({"num_loops": loops, **MODELS[name]}, train={"backprop_loops": backprop, "loop_loss": loss})
        except ValueError:  # makes no sense together
            continue
        planned += 1
        outputs = run.train.loop_loss.outputs
        wanted = train_flops_per_token(run.model, run.train.seq_len, loops, outputs=outputs, backprop_loops=backprop)
        assert make_plan(run, 1).train_flops_per_token == wanted, (loss, loops, backprop)
    assert planned >= 14


def test_loops_without_gradient_are_planned_as_forward_work() -> None:
    def plan(**train: Any) -> Plan:
        return make_plan(config({"num_loops": 8, "loop": {"injection": "add"}}, train={"steps": 200, **train}), 1)

    full, cut, all_of_them = plan(), plan(backprop_loops=2), plan(backprop_loops=8)
    assert all_of_them.train_flops_per_token == full.train_flops_per_token > cut.train_flops_per_token
    assert cut.worst_stage.activations < full.worst_stage.activations / 2
    assert "gradients through the last 2 loops of a step" in text_of(cut)
    growing = plan(backprop_loops=8, backprop_growth={"start": 1, "begin": 0.5, "end": 0.5})
    ends = plan(backprop_loops=1).train_flops_per_token + full.train_flops_per_token
    assert growing.train_flops_per_token == pytest.approx(ends / 2)


def test_what_is_computed_again_is_that_of_the_loops_of_a_run() -> None:
    """MFU and the FLOPs of training leave it out."""

    def plan(**train: Any) -> Plan:
        model = {"num_loops": 8, "loop": {"injection": "add"}}
        return make_plan(config(model, train={"steps": 200, "recompute": "loop", **train}), 1)

    full, cut, growing = plan(), plan(backprop_loops=2), plan(loop_sampling={"growth": {"start": 1, "end": 0}})
    assert plan(recompute="none").recomputed == 1
    assert full.train_flops_per_token == plan(recompute="none").train_flops_per_token
    again = [(each.recomputed - 1) * each.train_flops_per_token for each in (full, cut)]
    assert again[1] == pytest.approx(again[0] / 4)  # two loops of eight
    assert growing.recomputed == full.recomputed  # from the first step on
    late = plan(loop_sampling={"growth": {"start": 1, "begin": 1}})
    assert late.recomputed == pytest.approx(plan_of_one_loop(recompute="loop").recomputed)
    assert f"recomputing each loop, the machine does {late.recomputed:.2f} × that" in text_of(late)


def plan_of_one_loop(**train: Any) -> Plan:
    return make_plan(config({"num_loops": 1}, train=train), 1)


def test_blocks_are_planned_like_the_loops_they_imitate() -> None:
    blocks = config(
        {"num_loop_layers": 6, "num_loops": 1, "loop_regulariser": {"block_size": 2}}, parallel={"pipeline": 2}
    )
    looped = config({"num_loop_layers": 2, "num_loops": 3}, parallel={"pipeline": 2})
    assert [s.activations for s in make_plan(blocks, 2).stages] == [s.activations for s in make_plan(looped, 2).stages]
    assert "3 blocks of 2 layers" in text_of(make_plan(blocks, 2))


def test_gradients_on_their_way_in_bf16_are_planned_where_there_are_others_to_send_them_to() -> None:
    parallel = {"overlap": True, "reduce_precision": "bf16"}
    many = config({"ffn_size": 4096}, parallel=parallel, train={"seq_len": 4, "micro_batch": 1})
    alone, two = (make_plan(many, ranks).worst_stage for ranks in (1, 2))
    assert alone.sending == 0 and two.sending == 2 * two.weights > two.activations + two.working
    assert two.total == two.weights + two.gradients + two.optimizer + two.sending
    shown = [text_of(make_plan(many, ranks)) for ranks in (1, 2)]
    assert "sending" not in shown[0] and f" {two.sending / 2**30:.3f}" in shown[1]
    assert "evaluation or sending takes the place of activations" in shown[1]


def test_ranks_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"world size=3 is not divisible by parallel.tensor · parallel.pipeline=2"):
        make_plan(config({}, parallel={"pipeline": 2}), 3)


def test_planning_does_not_import_torch() -> None:
    code = "import sys, pretrain.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
