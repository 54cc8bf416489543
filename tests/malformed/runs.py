"""Malformed files of runs: rows, status, checkpoints. Rows of a run that goes on are named and passed over; a run that
is damaged never takes another's line away."""

import json
from collections.abc import Iterator
from typing import Any

from tests.faults.seam import ROOT
from tests.malformed.case import BEYOND_64_BITS, DEEP_LIST, DEEP_MAP, Case

GOLDEN = ROOT / "tests/golden"
LINES: dict[str, str] = {
    "nested lists": DEEP_LIST + "\n", "nested maps": DEEP_MAP + "\n", "no JSON": "{\n", "a list": "[1]\n",
    "a number": "12.0\n", "NUL": "\0\0\0\n", "step a text": '{"step": "a"}\n', "step a list": '{"step": [1]}\n',
    "step null": '{"step": null}\n', "step a float": '{"step": 1.5}\n', "step true": '{"step": true}\n',
    "step missing": "{}\n", "cut short": '{"step": 4, "lo',
}  # fmt: skip
VALUES = {
    "a text": '"a"', "a list": "[1]", "a map": "{}", "NaN": "NaN", "Infinity": "Infinity", "null": "null",
    "1e400": "1e400", "negative": "-3", "huge": "1e300", "of 400 digits": "9" * 400,
}  # fmt: skip


def _lines(path: str) -> list[str]:
    return (GOLDEN / path).read_text().splitlines(keepends=True)


def _with(row: dict[str, Any], key: str, value: str) -> str:
    """A row as a line, with a value that need not be JSON."""
    return "{" + ", ".join(f'"{name}": {value if name == key else json.dumps(it)}' for name, it in row.items()) + "}\n"


def resumed(name: str, run: str, files: dict[str, str | bytes], *words: str) -> Case:
    """A run of the repository's golden files that goes on."""
    longer = "train.steps=9" if run == "pretrained" else "train.epochs=3"
    return Case(
        name=f"resumed, {name}", command="pretrain.train" if run == "pretrained" else "finetune.coconut", copies=(run,),
        arguments=("--config", f"{{world}}/{run}.yaml", "run.root={here}", longer), files=files, code=0,
        words=("resumed", *words),
    )  # fmt: skip


def rows() -> Iterator[Case]:
    """Rows of a run that goes on: damaged ones are named, and so are those that are missing."""
    for run, results, last in (("pretrained", "depth.jsonl", 8), ("finetuned", "coconut.jsonl", 4)):
        for file in ("metrics.jsonl", f"eval/{results}"):
            kept = _lines(f"{run}/{file}")
            for name in ("nested lists", "step a text", "NUL") if run == "pretrained" else ("nested maps",):
                place = f"warning: {{here}}/{run}/{file}:{len(kept) + 1}: "
                yield resumed(f"{file}, {name}", run, {f"{run}/{file}": "".join(kept) + LINES[name]}, place)
        kept, named = _lines(f"{run}/metrics.jsonl"), f"{run}/metrics.jsonl"
        for name, lines, missing in (
            ("emptied", [], f"1 to {last}"), ("without its end", kept[:-2], f"{last - 1} to {last}"),
            ("without the second row", [kept[0], *kept[2:]], "2"), ("with two gaps", [kept[1], *kept[3:]], "1, 3"),
        ):  # fmt: skip
            words = f"warning: {{here}}/{named}: no row of step"
            yield resumed(f"metrics.jsonl {name}", run, {named: "".join(lines)}, words, f" {missing}: ")
        words = f"warning: {{here}}/{run}/eval/{results}: no row of step {last // 2}: "
        yield resumed(f"eval/{results} emptied", run, {f"{run}/eval/{results}": ""}, words)


def checkpoints() -> Iterator[Case]:
    """Files of the newest checkpoint."""
    step = "pretrained/checkpoints/step-00000008"
    for name, content in {
        "nested": DEEP_LIST, "a list": "[]", "empty": "", "null": "null", "body a list": '{"sha256": "", "body": []}',
        "binary": bytes(range(256)),
    }.items():  # fmt: skip
        files: dict[str, str | bytes] = {f"{step}/checkpoint.json": content}
        yield resumed(f"checkpoint.json {name}", "pretrained", files, "step-00000008", "is bad")
        yield Case(
            name=f"checkpoint.json {name}", command="tools.generate", copies=("pretrained",), files=files, code=0,
            arguments=("--run", "{here}/pretrained", "--prompt", "1", "--max-new-tokens", "1"),
            words=("step-00000008", "is bad", "step 4"),
        )  # fmt: skip


def status(name: str, files: dict[str, str | bytes]) -> Case:
    """Two runs, one of them damaged."""
    return Case(
        name=name, command="tools.status", arguments=("{here}",), copies=("pretrained", "finetuned"), is_light=True,
        files={f"pretrained/{file}": content for file, content in files.items()}, code=0,
        words=("\nfinetuned   complete", "\npretrained  "),
    )  # fmt: skip


def statuses() -> Iterator[Case]:
    """What the table of runs reads."""
    running: dict[str, str | bytes] = {"state": "running\n"}
    for name, line in LINES.items():
        yield status(f"metrics.jsonl, {name}", {"metrics.jsonl": line})
    good = json.loads(_lines("pretrained/metrics.jsonl")[-1])
    for key in ("loss", "tokens_per_s", "mfu_pct", "step_time_s", "step"):
        for name, value in VALUES.items():
            files = {"metrics.jsonl": _with(good, key, value)}
            yield status(f"metrics.jsonl, {key} {name}, running", {**files, **running})
    for key in ("logging: {every: %s}", "train: {steps: %s}", "train: {epochs: %s}", "train: %s", "logging: %s"):
        for name, value in {
            "a text": "abc", "a list": "[1]", "null": "null", "negative": "-1", "0": "0", "67 bits": BEYOND_64_BITS,
            "NaN": ".nan", "true": "true", "a date": "2001-01-01", "nested": DEEP_LIST, "a float": "1e9",
        }.items():  # fmt: skip
            yield status(f"config.yaml, {key % name}, running", {"config.yaml": key % value, **running})
    for name, content in {
        "binary": bytes(range(256)), "nested": DEEP_MAP, "a list": "[1]", "empty": "", "a bad date": "a: 2001-99-99",
        "a key twice": "train: {steps: 1}\ntrain: {steps: 2}\n", "a list as a key": "? [1]\n: 2\n",
        "a tag": "a: !!python/name:os.system", "5,000 digits": "a: " + "9" * 5000, "base 60": "a: 1" + ":1" * 3000,
    }.items():  # fmt: skip
        yield status(f"config.yaml, {name}", {"config.yaml": content})
    contents: dict[str, str | bytes] = {
        "binary": bytes(range(256)), "empty": "", "a long line": "x" * 100_000, "empty lines": "\n\n", "a NUL": "\0\n",
    }  # fmt: skip
    for file in ("state", "requeues.txt", "jobs/7-0/failure.txt", "jobs/7-0/step.log"):
        for name, content in contents.items():
            yield status(f"{file}, {name}", {file: content})
    digits = "9" * 200
    for file in (
        "jobs/x-y/step.log",
        f"jobs/{digits}-0/step.log",
        "checkpoints/step-abc/a",
        f"checkpoints/step-{digits}/a",
    ):
        yield status(file[:30], {file: "error: a"})


def results() -> Iterator[Case]:
    """Rows of evaluations, which plots and tables read."""
    good = json.loads(_lines("pretrained/eval/depth.jsonl")[0])
    numbers = "num_loops step effective_depth num_params tokens_seen train_flops eval_flops_per_token stderr"
    wrong = {name: line for name, line in LINES.items() if name not in ("step missing",)}
    wrong |= {
        f"{key} {name}": _with(good, key, value)
        for key in numbers.split()
        for name, value in VALUES.items()
        if not (isinstance(good[key], float) or key in ("train_flops", "eval_flops_per_token", "stderr"))
        or name not in ("huge", "null", "negative", "of 400 digits")
    }
    wrong = {name: line for name, line in wrong.items() if (name != "tokens_seen null")}
    for name, line in wrong.items():
        yield Case(
            name=f"row, {name}", command="tools.scaling_plot", arguments=("{here}/r.jsonl", "--out", "{here}/out"),
            files={"r.jsonl": line}, words=("r.jsonl:1: ",), is_light=True,
        )  # fmt: skip
    for name in ("nested lists", "no JSON", "step a text"):
        kept = "".join(_lines("finetuned/eval/coconut.jsonl"))
        yield Case(
            name=f"row, {name}", command="tools.coconut_table", arguments=("{here}/r.jsonl", "--split", "validation"),
            files={"r.jsonl": kept + LINES[name]}, words=("r.jsonl:3: ", "| coconut |"), code=0, is_light=True,
        )  # fmt: skip
        yield Case(
            name=f"row, {name}", command="tools.eval_depth", copies=("pretrained",), code=0,
            arguments=("--run", "{here}/pretrained", "--num-examples", "2"),
            files={"pretrained/eval/depth.jsonl": LINES[name]}, words=("depth.jsonl:1: ", "1 tasks evaluated"),
        )  # fmt: skip
        yield Case(
            name=f"row, {name}", command="tools.eval_coconut", copies=("finetuned",), code=0,
            arguments=("--run", "{here}/finetuned", "--num-examples", "2", "--latents", "0"),
            files={"finetuned/eval/coconut.jsonl": LINES[name]}, words=("coconut.jsonl:1: ", "rows:"),
        )  # fmt: skip


def cases() -> Iterator[Case]:
    for kind in (rows, checkpoints, statuses, results):
        yield from kind()
