"""Mixtures: shares by temperature, budgets that are kept to the sample, and one order on any layout and after any
restart."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pretrain.config.data import DataSection, SourceSection
from pretrain.data.extent import describe, measure
from pretrain.data.manifest import Manifest
from pretrain.data.mixture import expected_tokens, mixture_weights
from pretrain.data.stream.cursor import FIELDS
from pretrain.data.stream.loader import Loader
from pretrain.data.tokenizers.tokenizer import Tokenizer
from tests.support.corpus import make_data, make_texts, make_tokenizer, write_source
from tests.support.loader_child import join_ranks
from tests.unit.data.test_extent import make_config

SEQ_LEN, GLOBAL_BATCH, STREAMS = 32, 16, 8
SAMPLES, EPOCH = FIELDS.index("samples"), FIELDS.index("epoch")
TASK = {"task": "addition", "parameters": {"num_operands": [2], "num_digits": 2}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixture")


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Tokenizer:
    return make_tokenizer(root / "tokenizer.model")


@pytest.fixture(scope="module")
def folders(root: Path, tokenizer: Tokenizer) -> list[Path]:
    """Two of tokens, one four times as large as the other, and one of text."""
    large, small, text = (make_texts(count, tag=f"of{count}n") for count in (400, 100, 50))
    written = [write_source(root / name, texts, 4, tokenizer) for name, texts in (("large", large), ("small", small))]
    return [*written, write_source(root / "text", text, 2, tokenizer, as_text=True)]


def mix(root: Path, folders: Sequence[Path], *settings: dict[str, Any], **fields: Any) -> DataSection:
    """A data section of folders, each with its settings."""
    sources = [{"path": str(folder), **each} for folder, each in zip(folders, settings, strict=True)]
    base = make_data(root / "tokenizer.model", num_streams=STREAMS).model_dump()
    return DataSection.model_validate(base | {"sources": sources} | fields)


def batches(data: DataSection, count: int, ranks: Sequence[int] = (1,), every: int = 10**9) -> Iterator[np.ndarray]:
    """Global batches of a run that is cut every so many of them and goes on with the next number of ranks; the last
    thing it gives is the state of all ranks."""
    states, next_sample = None, 0
    for part in range(math.ceil(count / every)):
        num_ranks = ranks[part % len(ranks)]
        with ExitStack() as stack:
            sizes = {"seed": 5, "seq_len": SEQ_LEN, "global_batch": GLOBAL_BATCH, "num_ranks": num_ranks}
            loaders = [stack.enter_context(Loader(data, rank=rank, **sizes)) for rank in range(num_ranks)]
            for loader in loaders if states is not None else ():
                loader.load_state(states, next_sample)
            for _ in range(min(every, count - part * every)):
                yield join_ranks([loader.next_batch() for loader in loaders])
            states = np.sum([loader.state() for loader in loaders], axis=0)
            next_sample = loaders[0].next_sample
    assert states is not None
    yield states


@pytest.mark.parametrize(("temperature", "ratio"), [(1.0, 16.0), (2.0, 4.0), (4.0, 2.0), (1e9, 1.0)])
def test_weights_are_powers_of_the_sizes(temperature: float, ratio: float) -> None:
    data = DataSection(sources=(SourceSection(path="a"), SourceSection(path="b", weight=3.0)), temperature=temperature)
    first, second = mixture_weights(data, [1600, 100])
    assert first / second * 3 == pytest.approx(ratio)
    assert mixture_weights(data.model_copy(update={"temperature": None}), [1600, None]) == (1.0, 3.0)


def test_the_loader_draws_by_temperature(root: Path, folders: list[Path]) -> None:
    tokens = [Manifest.open(folder).header.num_tokens or 0 for folder in folders[:2]]
    *_, states = batches(mix(root, folders[:2], {}, {}, temperature=2), 120)
    large, small = states[:, :, SAMPLES].sum(axis=0)
    assert large + small == 120 * GLOBAL_BATCH
    assert large / small == pytest.approx((tokens[0] / tokens[1]) ** 0.5, rel=0.1)


def test_tokens_that_are_not_known_have_no_temperature(root: Path, folders: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"text: holds text, whose tokens data\.temperature=2 does not know: prepare"):
        next(batches(mix(root, folders[1:], {}, {}, temperature=2), 1))


BUDGETS = [{"weight": 1.0}, {"weight": 2.0, "max_tokens": 3333}, {"max_epochs": 2, "weight": 2.0}]


def test_budgets_are_kept_and_the_others_go_on(root: Path, folders: list[Path]) -> None:
    *_, states = batches(mix(root, folders, *BUDGETS), 60)
    assert states[:, 1, SAMPLES].tolist() == [13] * 8  # 104 of 32 tokens are in 3333, all streams read theirs
    assert states[:, 2, EPOCH].tolist() == [2] * STREAMS
    taken = states[:, :, SAMPLES].sum(axis=0)
    assert taken.sum() == 60 * GLOBAL_BATCH
    *_, twice = batches(mix(root, folders, *BUDGETS), 80)
    assert (twice[:, 1:] == states[:, 1:]).all()
    assert (twice[:, 0, SAMPLES] - states[:, 0, SAMPLES] == 20 * GLOBAL_BATCH // STREAMS).all()


def test_what_a_budget_does_not_divide_goes_to_the_first_streams(root: Path, folders: list[Path]) -> None:
    *_, states = batches(mix(root, folders[:2], {}, {"max_tokens": 11 * SEQ_LEN + 1}), 20)
    assert states[:, 1, SAMPLES].tolist() == [2, 2, 2, 1, 1, 1, 1, 1]


def test_max_epochs_reads_every_document_so_often_and_no_more(
    root: Path, folders: list[Path], tokenizer: Tokenizer
) -> None:
    """Apart from the documents of the next epoch with which the last sequence of a stream is filled up."""
    data = mix(root, folders[:2], {}, {"max_epochs": 2, "weight": 3.0})
    *found, states = batches(data, 70)
    tokens = np.concatenate([batch[:, 0].ravel() for batch in found]).tolist()
    begins = [tokenizer.bos_id, *tokenizer.encode("of100n")]
    number = sum(tokens[place : place + len(begins)] == begins for place in range(len(tokens)))
    assert states[:, 1, EPOCH].tolist() == [2] * STREAMS
    cut = STREAMS * SEQ_LEN // len(begins)  # names that lie across two sequences, or in the last ones
    assert 200 - cut <= number <= 200 + cut


@pytest.mark.parametrize(("num_workers", "ranks", "every"), [(0, (4,), 99), (0, (1, 2, 8), 7), (2, (2, 1), 20)])
def test_no_layout_and_no_restart_changes_a_mixture(
    root: Path, folders: list[Path], num_workers: int, ranks: tuple[int, ...], every: int
) -> None:
    reference = list(batches(mix(root, folders, *BUDGETS), 45))
    found = list(batches(mix(root, folders, *BUDGETS, num_workers=num_workers), 45, ranks, every))
    assert all(np.array_equal(one, other) for one, other in zip(found, reference, strict=True))


def test_until_a_budget_is_used_up_it_changes_nothing(root: Path, folders: list[Path]) -> None:
    free = list(batches(mix(root, folders, *({"weight": each["weight"]} for each in BUDGETS)), 40))
    bound = list(batches(mix(root, folders, *BUDGETS), 40))
    same = [np.array_equal(one, other) for one, other in zip(free, bound, strict=True)]
    assert all(same[:8]) and not any(same[-15:])


def test_a_task_may_have_a_budget_of_tokens(root: Path, folders: list[Path]) -> None:
    data = mix(root, folders[:1], {}, tokenizer="symbols:0123456789+=", sources=[TASK | {"max_tokens": 320}, TASK])
    *_, states = batches(data, 20)
    assert states[:, :, SAMPLES].sum(axis=0).tolist() == [10, 310]


def test_validation_has_no_budget(root: Path, folders: list[Path]) -> None:
    data = mix(root, folders[:2], {}, {"max_tokens": SEQ_LEN}, validation_fraction=0.5)
    loader = Loader(data, seed=5, seq_len=SEQ_LEN, global_batch=GLOBAL_BATCH, split="validation")
    loader.next_batch()
    assert loader.state()[:, 1, SAMPLES].sum() > 1


def test_a_state_in_which_samples_are_not_counted(root: Path, folders: list[Path]) -> None:
    old = np.zeros((STREAMS, 2, len(FIELDS) - 1), dtype=np.int64)
    for settings in ({}, {"max_epochs": 2}):
        with Loader(mix(root, folders[:2], {}, settings), seed=5, seq_len=32, global_batch=16) as loader:
            loader.load_state(old, 0)
            assert loader.state().shape == (STREAMS, 2, len(FIELDS))
    with (
        Loader(mix(root, folders[:2], {}, {"max_tokens": 99}), seed=5, seq_len=32, global_batch=16) as loader,
        pytest.raises(ValueError, match=r"did not count what it read of each source: leave out data\.sources"),
    ):
        loader.load_state(old, 0)


def test_the_dry_run_says_shares_and_epochs_as_they_come_out(
    root: Path, folders: list[Path], tokenizer: Tokenizer
) -> None:
    data = mix(root, folders, *BUDGETS, validation_fraction=0.0)
    config = make_config(root, steps=60, **data.model_dump(exclude={"tokenizer", "validation_fraction", "sources"}))
    train = config.train.model_copy(update={"seq_len": SEQ_LEN, "global_batch": GLOBAL_BATCH})
    config = config.model_copy(update={"data": data, "train": train})
    *_, states = batches(data, 60)
    shares = states[:, :, SAMPLES].sum(axis=0) / (60 * GLOBAL_BATCH)
    extents = measure(config, tokenizer)
    assert sum(extent.share for extent in extents) == pytest.approx(1)
    assert [extent.share for extent in extents] == pytest.approx(shares.tolist(), rel=0.06)
    assert extents[2].epochs == pytest.approx(2)
    lines = [line for line in describe(config) if not line.startswith("warning: ")]
    assert lines == [str(extent) for extent in extents]
    assert lines[2].endswith(f" this run reads 2 epochs, {100 * extents[2].share:.3g} % of its tokens")


def test_what_is_left_of_a_budget_goes_to_the_others_in_their_proportions() -> None:
    assert expected_tokens(100, [1, 1, 2], [math.inf] * 3) == [25, 25, 50]
    assert expected_tokens(100, [1, 1, 2], [math.inf, math.inf, 20]) == [40, 40, 20]
    assert expected_tokens(100, [1, 1, 2], [math.inf, 10, 20]) == [70, 10, 20]
    assert expected_tokens(10, [1, 1], [math.inf, 50]) == [5, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": [{"path": "a", "max_tokens": 5}, {"path": "b", "max_epochs": 1}]}, "each has a budget"),
        ({"sources": [{"path": "a"}, TASK], "temperature": 2}, "task addition has no end: give weights"),
        ({"sources": [{"path": "a"}], "temperature": 0.5}, "greater than or equal to 1"),
        ({"sources": [{"path": "a", "max_tokens": 0}]}, "greater than 0"),
    ],
)
def test_mixtures_that_cannot_be_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSection.model_validate(values)
