"""Examples from files and as tokens: every form that is read, and what cannot mean what was meant refused by file and
row."""

import gzip
import json
from pathlib import Path

import pytest

from finetune.config import ExamplesSection, FinetuneConfig
from finetune.examples.examples import encode_examples, load_example_set, load_examples
from finetune.examples.text_lines import read_lines
from pretrain.config.read import read_config
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.tasks.example_file import read_examples
from pretrain.tasks.task import Example
from tests.unit.finetune.test_config import ROOT, SMALL


def section_of(path: Path, **changes: object) -> ExamplesSection:
    return ExamplesSection.model_validate({"path": str(path), **changes})


def test_lines_of_gsm8k_aug(tmp_path: Path) -> None:
    lines = "What is 2+3?||<<2+3=5>> #### 5\nHow many?||#### 7\nA\u2028B?||<<1=1>> <<2=2>> #### 1,000\n"
    plain, packed = tmp_path / "train.txt", tmp_path / "train.txt.gz"
    plain.write_text(lines)
    packed.write_bytes(gzip.compress(lines.encode()))
    found = read_lines(plain)
    assert found == read_lines(packed)
    assert [(example.question, example.steps, example.answer) for example in found] == [
        ("What is 2+3?", ("<<2+3=5>>",), "5"), ("How many?", (), "7"), ("A\u2028B?", ("<<1=1>>", "<<2=2>>"), "1,000"),
    ]  # fmt: skip


def test_a_byte_order_mark_blank_lines_and_damage_of_a_text_file(tmp_path: Path) -> None:
    plain, packed = tmp_path / "train.txt", tmp_path / "train.txt.gz"
    plain.write_bytes("\ufeffa?||1\u00a0m 2 #### 3\r\n \nb?||#### 4\n\n".encode())
    first, second = read_lines(plain, " ")
    assert (first.question, first.steps, first.answer) == ("a?", ("1\u00a0m", "2"), "3")
    assert (second.question, second.steps, second.answer) == ("b?", (), "4")
    data = bytearray(gzip.compress(b"".join(b"%d?||<<1=1>> #### %d\n" % (n, n * n) for n in range(500))))
    refused = 0
    for place in range(10, len(data), 7):
        packed.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"train\.txt\.gz: ") as caught:
            read_lines(packed)
        refused += "\n" not in str(caught.value)
    assert refused == len(range(10, len(data), 7))


def test_steps_end_where_the_file_says(tmp_path: Path) -> None:
    """Steps may be sentences; where they end is not guessed."""
    file = tmp_path / "train.txt"
    file.write_text("a?||<<he has 2 + 3 = 5>><<5 * 2 = 10>> #### 10\n")
    assert read_lines(file)[0].steps == ("<<he has 2 + 3 = 5>>", "<<5 * 2 = 10>>")
    file.write_text("a?||He has five. He eats two. #### 3\n")
    assert read_lines(file, ". ")[0].steps == ("He has five", "He eats two")
    for chain in ("He has five. He eats two.", "<<2+3=5>> and so on", "<<2+3=5", "2+3=5"):
        file.write_text(f"a?||<<1=1>> #### 1\nb?||{chain} #### 3\n")
        with pytest.raises(
            ValueError, match=r"train\.txt: row 1: where its steps end is not clear: got .*; write each"
        ):
            read_lines(file)


def test_rows_of_json_may_be_lines(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "steps": [f"{n}"], "answer": f"{n}"} for n in range(3)]
    lines, packed = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz"
    lines.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n")
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    assert read_examples(lines) == read_examples(packed) == [Example(f"{n}?", (f"{n}",), f"{n}") for n in range(3)]
    lines.write_text(json.dumps(rows[0]) + "\n{\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl: not valid JSON: line 2: "):
        read_examples(lines)


@pytest.mark.parametrize("line", ["Is a||b true?||<<1=1>> #### 1", "a?||<<1=1>> #### 1 #### 2"])
def test_a_line_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "train.txt"
    file.write_text(f"What is #### here?||#### 1\n{line}\n")
    with pytest.raises(ValueError, match=r"train\.txt: row 1: which `\|\|` ends the question, or which `####` begins"):
        read_lines(file)


@pytest.mark.parametrize("name", ["rows.txt", "rows.json"])
def test_an_answer_that_holds_the_mark_is_refused(tmp_path: Path, name: str) -> None:
    """The answer that is given is what follows the last mark: it could never be this one."""
    file = tmp_path / name
    is_text = name.endswith(".txt")
    rows = [{"question": "a?", "steps": [], "answer": answer} for answer in ("1", "C#")]
    file.write_text("a?||#### 1\nWhich language?||<<a>> #### C#\n" if is_text else json.dumps(rows))
    with pytest.raises(ValueError, match=rf"{name}: example 1: its answer 'C#' holds '#', which marks where"):
        load_examples(section_of(file), "train", 0)


def test_data_that_cannot_mean_what_was_meant_are_refused_by_file_and_row(tmp_path: Path) -> None:
    file, tokenizer = tmp_path / "rows.json", Tokenizer.load("symbols:abc123?# \n")

    def write(*answers: str, question: str = "a?") -> None:
        file.write_text(json.dumps([{"question": question, "steps": ["b"], "answer": answer} for answer in answers]))

    write("1", " ")
    with pytest.raises(ValueError, match=r"rows\.json: row 1: answer: is blank"):
        load_examples(section_of(file), "train", 0)
    for blank in (",", " , "):
        write("1", blank)
        with pytest.raises(ValueError, match=r"rows\.json: example 1: its answer '.*' has nothing to compare"):
            load_examples(section_of(file), "train", 0)
    write("1", "2")
    with pytest.raises(ValueError, match=r"rows\.json: has 2 examples, data\.test\.num_examples=3"):
        load_examples(section_of(file, num_examples=3), "test", 0)
    with pytest.raises(ValueError, match=r"rows\.json: its steps are lists already: leave out step_separator"):
        load_examples(section_of(file, step_separator=" "), "test", 0)
    with pytest.raises(ValueError, match=r"step_separator is for a file"):
        ExamplesSection.model_validate({"task": "prosqa", "num_examples": 1, "step_separator": " "})
    write("1", question="aé?")
    with pytest.raises(ValueError, match=r"rows\.json: example 0: .*é"):
        load_example_set(section_of(file), "train", 0, tokenizer)


def test_a_task_with_fewer_problems_than_are_asked_for_says_so() -> None:
    """36 products of two of six permutations, of which a sixteenth is for the test."""
    section = ExamplesSection(task="group_product", parameters={"order": 3, "num_elements": 2}, num_examples=100)
    message = r"task group_product: has \d different problems in test, data\.test\.num_examples=100: lower that or make"
    with pytest.raises(ValueError, match=message):
        load_examples(section, "test", 0)


@pytest.mark.parametrize("bad", ["no separators", "question||steps", "||<<1=1>> #### 1", "question||#### "])
def test_a_malformed_line_is_named(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "train.txt"
    file.write_text(f"a?||#### 1\n{bad}\n")
    with pytest.raises(ValueError, match=r"train\.txt: row 1: needs `question\|\|steps #### answer`"):
        read_lines(file)


def test_a_malformed_row_of_a_list_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(
        json.dumps(
            [{"question": "a?", "steps": [], "answer": "b"}, {"question": "a?", "steps": "no list", "answer": "b"}]
        )
    )
    with pytest.raises(ValueError, match=r"rows\.json: row 1: steps: "):
        load_examples(section_of(file), "train", 0)


def test_the_released_files_are_read() -> None:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data is not here")
    files = ("prosqa/prosqa_test.json.gz", "prontoqa/prontoqa_valid.json.gz", "gsm8k_aug/test.txt.gz")
    train = FinetuneConfig.model_fields["data"].default.train
    sizes = [len(load_examples(train.model_copy(update={"path": str(folder / file)}), "test", 0)[0]) for file in files]
    assert sizes == [500, 200, 1319]


def test_parts_are_encoded_by_themselves() -> None:
    tokenizer = Tokenizer.load("symbols:ABCDEFGHIJKLMNOPQabcdefghijklmnopqrstuvwxyz0123456789YZ,?=")
    section = read_config(SMALL, FinetuneConfig).data.train.model_copy(update={"num_examples": 3})
    examples, form = load_examples(section, "train", 0)
    for example, encoded in zip(examples, encode_examples(examples, form, tokenizer, "data.train"), strict=True):
        assert encoded.question == (tokenizer.bos_id, *tokenizer.encode(example.question))
        assert [tokenizer.decode(step) for step in encoded.steps] == [f"{step}," for step in example.steps]
        assert tokenizer.decode(encoded.answer) == f"={example.answer}" and encoded.answer[-1] == tokenizer.eos_id
        assert encoded.num_mark_tokens == 1


def test_examples_with_a_seed_of_their_own_are_the_same_for_every_run(tmp_path: Path) -> None:
    config = read_config(SMALL, FinetuneConfig, ["data.test.seed=7", "data.test.num_examples=5", "data.train.seed=8"])
    sets = {
        split: [load_examples(getattr(config.data, split), "test", seed)[0][:5] for seed in (0, 1)]
        for split in ("validation", "test")
    }
    assert sets["test"][0] == sets["test"][1]
    few = config.data.train.model_copy(update={"num_examples": 3})
    assert load_examples(few, "train", 0) == load_examples(few, "train", 1)
    assert sets["validation"][0] != sets["validation"][1]
    file = tmp_path / "own.yaml"
    file.write_text(f"base: {SMALL}\ndata: {{test: {{seed: 7}}}}\n")
    swapped = read_config(file, FinetuneConfig, ["data.test={path: a.json, task: null, parameters: {}}"])
    assert swapped.data.test.seed is None, "a file of examples needs no seed"
    with pytest.raises(ValueError, match=r"data\.test\.seed: has no effect with data\.test\.task=null"):
        read_config(SMALL, FinetuneConfig, ["data.test={path: a.json, task: null, parameters: {}, seed: 3}"])
