"""Rows and their files, wandb, the progress display, and the machine's peak."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.counters import Counters
from pretrain.config.logging import LoggingSection
from pretrain.config.run import (
    LoopSamplingSection,
    OptimizerSection,
    RunConfig,
    RunSection,
    TrainSection,
)
from pretrain.config.saved_model import SavedModel
from pretrain.device import hardware
from pretrain.device.hardware import peak_flops, peak_memory_gib, precision_warning
from pretrain.model.config import LoopRegulariserSection, ModelSection
from pretrain.model.count import count_parameters
from pretrain.rows.evaluation import EvaluationRow, ScoredModel
from pretrain.rows.step import StepCost
from pretrain.run.logger import RunMetrics
from pretrain.run.progress import Progress, tracked
from tests.support.run_rows import step_row
from tests.unit.rows.test_jsonl import full_disk

ROOT = Path(__file__).parents[3]


def config(wandb: str = "disabled", *, every: int = 1, steps: int = 10) -> RunConfig:
    logging = LoggingSection.model_validate({"wandb": wandb, "every": every})
    train, optimizer = TrainSection(steps=steps, global_batch=8, seq_len=16), OptimizerSection(warmup_steps=0)
    return RunConfig(run=RunSection(name="test"), logging=logging, train=train, optimizer=optimizer)


def evaluation(step: int, num_loops: int, nll: float = 3.0) -> EvaluationRow:
    counters = Counters(step=step, tokens_seen=640, train_flops=1e9)
    model = ScoredModel(saved=SavedModel.of(config()), counters=counters)
    return model.row("validation", "validation", "nll", nll, num_loops=num_loops, num_examples=64, stderr=0.1)


def rows_in(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_in(path: Path) -> list[object]:
    return [found["step"] for found in rows_in(path)]


def test_rates_of_a_step() -> None:
    cost = StepCost(tokens=1000, flops=2e9, seconds=0.5, peak_flops=8e9)
    assert (cost.tokens_per_s, cost.flops_per_s, cost.mfu_pct) == (2000, 4e9, 50)


def test_what_the_regulariser_adds_is_shown_where_there_is_one() -> None:
    assert step_row(1).describe() == "loss 3.5000, loops 2, 2.00k tok/s, MFU 50.0%, lr 1.00e-03"
    regularised = step_row(1, regularisation=-0.25, skipped=2).describe()
    assert regularised == "loss 3.5000 (regulariser -0.2500), loops 2, 2.00k tok/s, MFU 50.0%, lr 1.00e-03, 2 skipped"


def test_a_validation_row_holds_all_that_the_plot_needs() -> None:
    found = evaluation(5, 3)
    assert (found.run, found.task, found.metric, found.value) == ("test", "validation", "nll", 3.0)
    assert (found.tokens_seen, found.train_flops, found.num_loops, found.effective_depth) == (640, 1e9, 3, 24)
    assert found.num_loop_params == count_parameters(config().model, 16)["loop"]


def test_families() -> None:
    looped = RunConfig(model=ModelSection(num_loops=3))
    sampled = RunConfig(train=TrainSection(loop_sampling=LoopSamplingSection(distribution="uniform", maximum=4)))
    regularised = RunConfig(model=ModelSection(loop_regulariser=LoopRegulariserSection(weight=1.0, block_size=4)))
    families = [SavedModel.of(config).family for config in (looped, sampled, regularised, RunConfig())]
    assert families == ["looped", "looped", "regularised", "baseline"]


def test_rows_are_on_disk_at_once_and_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    with RunMetrics(config(), tmp_path, num_steps=10, resumed_step=0, stream=io.StringIO()) as metrics:
        metrics.log_step(step_row(1, loss=float("nan"), grad_norm=float("inf"), skipped=1))
        (found,) = rows_in(tmp_path / "metrics.jsonl")
    assert (found["loss"], found["grad_norm"], found["skipped"], found["lr"]) == (None, None, 1, 1e-3)


def test_only_every_nth_row_and_the_last_one_are_kept(tmp_path: Path) -> None:
    with RunMetrics(config(every=4), tmp_path, num_steps=10, resumed_step=0, stream=io.StringIO()) as metrics:
        for step in range(1, 11):
            metrics.log_step(step_row(step))
    assert steps_in(tmp_path / "metrics.jsonl") == [4, 8, 10]


def test_a_resumed_run_has_no_step_twice(tmp_path: Path) -> None:
    for resumed_step, last in ((0, 7), (5, 10)):
        with RunMetrics(config(), tmp_path, num_steps=10, resumed_step=resumed_step, stream=io.StringIO()) as metrics:
            for step in range(resumed_step + 1, last + 1):
                metrics.log_step(step_row(step))
                metrics.log_evaluation([evaluation(step, 1), evaluation(step, 2)])
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(1, 11))
    found = [(row["step"], row["num_loops"]) for row in rows_in(tmp_path / "eval" / "depth.jsonl")]
    assert found == [(step, loops) for step in range(1, 11) for loops in (1, 2)]


def test_a_start_that_left_no_checkpoint_leaves_no_rows(tmp_path: Path) -> None:
    """Those of step 0, of weights that a run begins with, are made again: the run has another id."""
    for resumed_step, kept in ((None, 1), (None, 1), (0, 2)):
        with RunMetrics(config(), tmp_path, num_steps=10, resumed_step=resumed_step, stream=io.StringIO()) as metrics:
            metrics.log_evaluation([evaluation(0, 1)])
            metrics.log_step(step_row(1))
            metrics.log_evaluation([evaluation(1, 1)])
        assert [row["step"] for row in rows_in(tmp_path / "eval" / "depth.jsonl")] == [*[0] * kept, 1]
        assert steps_in(tmp_path / "metrics.jsonl") == [1]


def test_a_row_torn_by_a_kill_is_removed_and_named(tmp_path: Path) -> None:
    path, stream = tmp_path / "metrics.jsonl", io.StringIO()
    with RunMetrics(config(), tmp_path, num_steps=10, resumed_step=0, stream=io.StringIO()) as metrics:
        for step in (1, 2, 3):
            metrics.log_step(step_row(step))
    path.write_bytes(path.read_bytes()[:-30])
    with RunMetrics(config(), tmp_path, num_steps=10, resumed_step=3, stream=stream) as metrics:
        metrics.log_step(step_row(4))
    assert steps_in(path) == [1, 2, 4]
    assert stream.getvalue().splitlines()[0] == f"warning: {path}:3: an unfinished row, removed"


def test_rows_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "metrics.jsonl"
    with RunMetrics(config(), tmp_path, num_steps=10, resumed_step=0, stream=stream) as metrics:
        with full_disk(400):
            for step in (1, 2, 3):
                metrics.log_step(step_row(step))
        assert steps_in(path) == [1]
        metrics.log_step(step_row(4))
        assert steps_in(path) == [1, 2, 3, 4]
    assert stream.getvalue().count("its rows are held back until there is room") == 1


def test_plain_lines_come_first_last_and_now_and_then(tmp_path: Path) -> None:
    stream, seconds = io.StringIO(), iter(range(0, 10_000, 4))
    progress = Progress(20, stream=stream, seconds_per_line=10, clock=lambda: next(seconds))
    for step in range(1, 9):
        progress.update(step, f"loss {step}")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 1/20, ETA ?, loss 1",
        "step 4/20, ETA 01:04, loss 4",
        "step 7/20, ETA 00:52, loss 7",
        "step 8/20, ETA 00:48, loss 8",
    ]


def test_work_on_many_items_shows_rate_and_time_left_if_it_is_long() -> None:
    def lines(seconds_per_item: float) -> list[str]:
        stream, now = io.StringIO(), [0.0]

        def items() -> Iterator[int]:
            for number in range(40):
                now[0] += seconds_per_item
                yield number

        assert list(tracked(items(), 40, "drawing", stream=stream, clock=lambda: now[0])) == list(range(40))
        return stream.getvalue().splitlines()

    assert lines(0.05) == []
    assert lines(0.5) == [
        "example 6/40, ETA 00:17, drawing, 2 examples/s",
        "example 26/40, ETA 00:07, drawing, 2 examples/s",
        "example 40/40, ETA 00:00, drawing, 2 examples/s",
    ]


def test_a_slow_first_step_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.run.progress.FIRST_AFTER_S", 0.05)
    stream, batches = io.StringIO(), iter(range(1, 100))
    progress = Progress(20, done=4, stream=stream)
    with progress.first_step(5, lambda: f"{next(batches)} of 8"):
        time.sleep(0.2)
    time.sleep(0.1)
    assert stream.getvalue() == "step 5/20: 1 of 8 after 0 s\n"


def test_a_finished_run_says_its_last_step_once() -> None:
    stream = io.StringIO()
    progress = Progress(2, stream=stream, clock=lambda: 0.0)
    progress.update(1, "a")
    progress.update(2, "b")
    progress.close()
    assert stream.getvalue().splitlines() == ["step 1/2, ETA ?, a", "step 2/2, ETA 00:00, b"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_bar_and_whole_messages(tmp_path: Path) -> None:
    stream = Terminal()
    with RunMetrics(config(), tmp_path, num_steps=10, resumed_step=4, stream=stream) as metrics:
        for step in range(5, 8):
            metrics.log_step(step_row(step))
        metrics.log_evaluation([evaluation(7, 1, 3.25), evaluation(7, 2, 3.125)])
    frames = stream.getvalue().replace("\n", "\r").split("\r")
    assert "step 7: validation nll 3.2500 at 1 loop, 3.1250 at 2 loops" in frames
    assert any("7/10" in frame and "loss 3.5000, loops 2" in frame and "ETA" in frame for frame in frames)


def test_peak_of_a_cpu_is_measured() -> None:
    assert 1e9 < (peak_flops(torch.device("cpu"), torch.float32) or 0) < 1e15


@pytest.mark.parametrize(
    ("rate", "sizes"), [(1e9, [512]), (2.2e10, [512, 1024]), (1e12, [512, 1024, 2048]), (1e15, [512, 1024, 2048])]
)
def test_peak_of_a_slow_format_is_measured_on_small_products(
    rate: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    monkeypatch.setattr(hardware, "_stable_rate", lambda size, *_: measured.append(size) or rate)
    assert hardware.measure_flops(torch.device("cpu"), torch.float32) == rate
    assert measured == sizes


def test_first_products_that_are_slow_are_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply, calls = torch.mm, iter(range(1_000_000))

    def slow_at_first(*arguments: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        if next(calls) < 4:
            time.sleep(0.05)
        return multiply(*arguments, **options)

    monkeypatch.setattr(torch, "mm", slow_at_first)
    assert hardware.measure_flops(torch.device("cpu"), torch.float32) > 2 * (2 * 512**3 / 0.05)


def test_an_unknown_gpu_has_no_peak_and_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X1")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) is None
    cost = StepCost(tokens=10, flops=2e12, seconds=0.5, peak_flops=None)
    assert cost.mfu_pct is None
    assert "4 TFLOP/s" in step_row(1, flops_per_s=cost.flops_per_s, mfu_pct=None).describe()


@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_precision_that_the_cpu_imitates_is_named(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    warning = precision_warning(torch.device("cpu"), torch.bfloat16)
    assert (warning is None) == has_bf16
    assert has_bf16 or "train.precision=fp32" in str(warning)
    assert precision_warning(torch.device("cpu"), torch.float32) is None
    assert precision_warning(torch.device("cuda"), torch.bfloat16) is None


def test_peak_of_a_known_gpu_is_its_data_sheet_s(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989.4e12,
        "NVIDIA H100 PCIe": 756.5e12,
        "NVIDIA A100-SXM4-80GB": 311.9e12,
        "NVIDIA L40S": 362.1e12,
        "NVIDIA L4": 121e12,
    }
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak


def test_memory_in_use_is_seen() -> None:
    before = peak_memory_gib(torch.device("cpu"))
    block = torch.ones(2**26)
    assert peak_memory_gib(torch.device("cpu")) >= max(before, block.nbytes / 2**30)
