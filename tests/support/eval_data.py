"""A small data directory for the offline evaluation tasks: a few made-up rows a file, in the formats of the
releases."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = 9
"""Rows of each file: enough for five shots without the one that is asked."""


def write_eval_data(folder: Path) -> Path:
    """Every file that the offline tasks read; plain, .gz and .xz in turn."""
    for number, (name, content) in enumerate(_files().items()):
        suffix, pack = (("", bytes), (".gz", gzip.compress), (".xz", lzma.compress))[number % 3]
        path = folder / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(content))
    return folder


def _lines(make: Callable[[int], dict[str, Any]]) -> bytes:
    # Not in ASCII: a string may then hold a character that str.splitlines cuts at, as those of some releases do.
    return "".join(json.dumps(make(n), ensure_ascii=False) + "\n" for n in range(ROWS)).encode()


def _list(make: Callable[[int], dict[str, Any]]) -> bytes:
    return json.dumps([make(n) for n in range(ROWS)], indent=1).encode()


def _mawps(n: int) -> dict[str, Any]:
    solution: object = (n + 0.5, f"{n}", f"1,{n}00.0")[n % 3]
    return {
        "iIndex": n,
        "lEquations": [f"x={n}"],
        "lSolutions": [solution],
        "sQuestion": f" Tom has {n} pens . How many has he ? ",
    }


def _arc_choices(n: int) -> list[str]:
    return [f"north {n}", f"south {n}", "east", "west"]


def _page(n: int) -> str:
    text = f" \n It 's a house @-@ boat , no. {n} of <unk> .\n = {n} dollars was the price .\n"
    return f" \n = House {n} = \n{text} \n = = Rooms = = \n \n Two .\n"


def _article(n: int) -> dict[str, Any]:
    answers = [{"text": f"the {n}th house", "answer_start": 3}, {"text": f"{n}th house", "answer_start": 7}]
    asked = {"question": "Which house?", "id": f"a{n}", "answers": answers, "is_impossible": False}
    silent = {
        "question": "Which street?",
        "id": f"b{n}",
        "answers": [],
        "plausible_answers": answers,
        "is_impossible": True,
    }
    return {"title": f"House_{n}", "paragraphs": [{"context": f"In the {n}th house he lived.", "qas": [asked, silent]}]}


def _files() -> dict[str, bytes]:
    files = {
        f"gsm8k/{split}.jsonl": _lines(
            lambda n, split=split: {
                "question": f"{split}: {n}+1?\u2028",
                "answer": f"It is {n}+1=<<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1:,}",
            }
        )
        for split in ("train", "test")
    }
    files["math_word_problems/svamp.json"] = _list(
        lambda n: {
            "ID": f"chal-{n}",
            "Body": f"Ann has {n} pens{'.' * (n % 2)}",
            "Question": "How many?",
            "Answer": float(n),
            "Type": "Sum",
        }
    )
    files |= {f"math_word_problems/{part}.json": _list(_mawps) for part in ("addsub", "multiarith", "singleeq")}
    files["math_word_problems/singleop.jsonl"] = _lines(
        lambda n: {"input": f"There are {n} cards. How many?", "target": n / 3}
    )
    files["squad/dev-v2.0.json"] = json.dumps({"version": "v2.0", "data": [_article(n) for n in range(ROWS)]}).encode()
    files["triviaqa/triviaqa_3000.jsonl"] = _lines(
        lambda n: {
            "context": f"Question: Who is number {n}?\nAnswer:",
            "answer": f"Number {n}",
            "aliases": [f"No. {n}", f"Number {n}"],
        }
    )
    files["nq_open/NQ-open.dev.jsonl"] = _lines(
        lambda n: {"question": f"who is 'number' {n}", "answer": [f"The {n}", f'"{n}"'][: 1 + n % 2]}
    )
    files |= {
        f"webquestions/{split}.json": _list(
            lambda n, split=split: {
                "qId": f"{split}{n}",
                "answers": ["York", f"Leeds {n}", "York City"],
                "qText": f"where is {n}?",
            }
        )
        for split in ("trainmodel", "test")
    }
    files["lambada/lambada_openai.jsonl"] = _lines(
        lambda n: {"context": f'"Go on,"  he said.\n\nShe {n} did not', "continuation": f"go{n}"}
    )
    files["hellaswag/hellaswag_val.jsonl"] = _lines(
        lambda n: {
            "ind": n,
            "activity_label": "Mowing",
            "ctx_a": f"[header] How to mow {n} [title] Buy a mower.",
            "ctx_b": "then,",
            "ctx": "unused",
            "endings": [f" she mows {n}. [step] Then she rests.", "it rains", "[substeps] he naps", "they dance"],
            "label": n % 4,
        }
    )
    files["piqa/validation.jsonl"] = _lines(
        lambda n: {"goal": f"Open jar {n}", "sol1": "Turn it.", "sol2": "Eat it.", "label": n % 2}
    )
    for level in ("Easy", "Challenge"):
        files[f"arc/ARC-{level}-validation.jsonl"] = _lines(
            lambda n: {
                "id": f"m{n}",
                "question": f"Where is {n}?",
                "choices": {"text": _arc_choices(n), "label": list(("ABCD", "1234")[n % 2])},
                "answerKey": ("ABCD", "1234")[n % 2][n % 4],
            }
        )
        files[f"arc/ARC-{level}-test.llm_foundry.jsonl"] = _lines(
            lambda n: {"choices": _arc_choices(n), "query": f"Question: Where was {n}?", "gold": n % 4}
        )
    files["wikitext2/test.txt"] = "".join(_page(n) for n in range(ROWS)).encode()
    for split in ("train", "validation"):
        files[f"boolq/{split}.jsonl"] = _lines(
            lambda n: {"question": f"is {n} even", "passage": f"{n} is a number.", "answer": n % 2 == 0}
        )
    for split in ("train_10000", "validation"):
        files[f"winogrande/{split}.jsonl"] = _lines(
            lambda n: {
                "sentence": f"Ann sold Eve {n} pens, so _ had a _ few.",
                "option1": "Ann",
                "option2": "Eve",
                "answer": str(1 + n % 2),
            }
        )
    return files
