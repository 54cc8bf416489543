"""Tasks as training data: rows, their labels, the same batches on any layout and after a resume, and what is
refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.config.data import DataSection, SourceSection
from pretrain.data.stream.labels import IGNORED
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.task_source import TaskSource
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.tasks.registry import make_task
from tests.support.corpus import make_texts, make_tokenizer, write_source

SUM = {"task": "addition", "parameters": {"num_operands": [2, 3], "num_digits": 2}}
HOPS = {"task": "p_hop", "parameters": {"num_hops": 3, "length": 12, "sampling": "uniform"}}
DIGITS = "symbols:0123456789+="
ROOT = Path(__file__).parents[3]


def source(description: dict[str, Any], tokenizer: str, seq_len: int, **changes: Any) -> tuple[TaskSource, Tokenizer]:
    loaded = Tokenizer.load(tokenizer)
    return TaskSource(SourceSection(**(description | changes)), "train", 0, seq_len, loaded), loaded


def test_loss_is_on_the_answer_and_the_end() -> None:
    made, tokenizer = source(SUM, DIGITS, 16)
    for number in range(50):
        tokens, labels = made.sample(number).tolist()
        example = made.task.pick("train", 0, number)
        text = [tokenizer.bos_id, *tokenizer.encode(example.question + example.answer), tokenizer.eos_id]
        assert tokens == [*text, *[tokenizer.pad_id] * 16][:16]
        supervised = [label for label in labels if label != IGNORED]
        assert supervised == [*tokenizer.encode(example.answer), tokenizer.eos_id]
        place = len(example.question)  # with bos before it, the place of the question's last token
        assert labels[place : place + len(supervised)] == supervised


def test_loss_is_on_the_steps_too_where_that_is_asked() -> None:
    made, tokenizer = source(
        {"task": "i_gsm"}, "symbols:" + "".join(sorted(all_characters("i_gsm"))), 700, supervise="steps"
    )
    example = made.task.pick("train", 0, 0)
    _, labels = made.sample(0).tolist()
    told = tokenizer.decode([label for label in labels if label not in (IGNORED, tokenizer.eos_id)])
    pieces = made.task.render(example)
    assert example.steps and told == "".join(piece.text for piece in pieces if piece.kind != "question")


def all_characters(name: str) -> set[str]:
    task = make_task(name, {})
    return {
        character for number in range(50) for piece in task.render(task.generate(0, number)) for character in piece.text
    }


def test_every_prefix_has_its_own_label() -> None:
    made, tokenizer = source(HOPS, "symbols:abcd", 13, supervise="prefixes")
    for number in range(50):
        example = made.task.pick("train", 0, number)
        tokens, labels = made.sample(number).tolist()
        assert tokens == [tokenizer.bos_id, *tokenizer.encode(example.question)]
        answers = made.task.prefix_answers(example.question)
        assert answers is not None and answers[-1] == example.answer
        assert labels == [IGNORED, *(IGNORED if answer is None else tokenizer.encode(answer)[0] for answer in answers)]


def test_a_mark_before_the_answer_follows_the_question_and_has_the_answer_to_all_of_it() -> None:
    """So a model that learnt from prefixes gives the answer where it is asked for."""
    product = {"task": "group_product", "parameters": {"order": 3, "num_elements": 4}}
    made, tokenizer = source(product, str(ROOT / "configs/tokenizers/symmetric_3.json"), 6, supervise="prefixes")
    tokens, labels = made.sample(0).tolist()
    example = made.task.pick("train", 0, 0)
    *answers, last = made.task.prefix_answers(example.question) or ()
    mark = tokenizer.encode("=")
    assert tokens == [tokenizer.bos_id, *tokenizer.encode(example.question), *mark]
    assert labels == [
        IGNORED,
        *(tokenizer.encode(answer or "")[0] for answer in answers),
        *mark,
        *tokenizer.encode(last),
    ]


def test_a_prefix_has_an_answer_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = source(HOPS, "symbols:abcd", 13, supervise="prefixes")
    for answer, number in (("ab", 2), ("", 0)):
        monkeypatch.setattr(type(made.task), "prefix_answers", lambda _, question, said=answer: (said,) * len(question))
        with pytest.raises(
            ValueError, match=f"needs answers of one token, and '{answer}' has {number}: data.tokenizer"
        ):
            made.sample(0)


def test_an_example_whose_last_label_would_be_cut_off_does_not_fit() -> None:
    made, _ = source(HOPS, "symbols:abcd", 12, supervise="prefixes")
    with pytest.raises(ValueError, match=r"an example can take 13 positions, more than train\.seq_len=12"):
        made.require_document()


def task_data(**changes: Any) -> DataSection:
    values = {"tokenizer": DIGITS, "sources": [SUM], "num_streams": 8, "num_workers": 0}
    return DataSection.model_validate(values | changes)


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(2, 0), (4, 1)])
def test_no_layout_and_no_resume_changes_the_batches(num_ranks: int, num_workers: int) -> None:
    sizes: dict[str, Any] = {"seed": 3, "seq_len": 16, "global_batch": 8}
    with Loader(task_data(), **sizes) as loader:
        wanted = [loader.next_batch() for _ in range(6)]
    assert len(np.unique(np.concatenate(wanted), axis=0)) == 48  # no example twice
    data = task_data(num_workers=num_workers)
    loaders = [Loader(data, rank=rank, num_ranks=num_ranks, **sizes) for rank in range(num_ranks)]
    for batch in wanted[:3]:
        assert np.array_equal(np.stack([each.next_batch() for each in loaders], axis=1).reshape(8, 2, -1), batch)
    states = sum(each.state() for each in loaders)
    for each in loaders:
        each.close()
    with Loader(data, **sizes) as resumed:
        resumed.require_sources(loaders[0].fingerprints)
        resumed.load_state(np.asarray(states), loaders[0].next_sample)
        assert all(np.array_equal(resumed.next_batch(), batch) for batch in wanted[3:])


def test_validation_holds_other_questions() -> None:
    sizes: dict[str, Any] = {"seed": 0, "seq_len": 16, "global_batch": 200}
    tokenizer = Tokenizer.load(DIGITS)
    sides = []
    for split in ("train", "validation"):
        with Loader(task_data(), split=split, **sizes) as loader:
            rows = loader.next_batch()[:, 0]
            sides.append({tokenizer.decode(row).split("=")[0] for row in rows})
    assert not sides[0] & sides[1]


def test_tasks_and_text_mix(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer.model")
    folder = write_source(tmp_path / "tokens", make_texts(50), 2, tokenizer)
    sources = [{"path": str(folder), "weight": 3.0}, {"task": "variable_assignment"}]
    data = task_data(tokenizer=str(tmp_path / "tokenizer.model"), sources=sources)
    with Loader(data, seed=0, seq_len=300, global_batch=400) as loader:
        labels = loader.next_batch()[:, 1]
    is_task = (labels == IGNORED).mean(axis=1) > 0.5
    assert is_task.mean() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(
    ("description", "tokenizer", "message"),
    [
        ({"task": "additon"}, DIGITS, "task additon: no such task, did you mean addition"),
        (SUM | {"parameters": {"num_operand": [2]}}, DIGITS, "no parameter num_operand, did you mean num_operands"),
        (SUM, "symbols:0123456789", r"task addition: character \d+: '\+.* data.tokenizer is not made for it"),
        (
            SUM | {"parameters": {"num_operands": [9]}},
            DIGITS,
            r"an example can take 41 positions, more than train.seq_len=16",
        ),
        (SUM | {"supervise": "prefixes"}, DIGITS, "supervise=prefixes needs a task with an answer to every prefix"),
        ({"task": "p_hop", "path": "x"}, DIGITS, "each names either a path, a folder of shards, or a task"),
        ({}, DIGITS, "each names either a path, a folder of shards, or a task"),
        (SUM, "symbols:", "its symbols are not a list of texts"),
    ],
)
def test_what_does_not_fit_is_named(description: dict[str, Any], tokenizer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(task_data(tokenizer=tokenizer, sources=[description]), seed=0, seq_len=16, global_batch=8)
