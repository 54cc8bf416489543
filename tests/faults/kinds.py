"""Kinds of run that meet a failing storage: what is there before, the command, and what must be there at the end."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pretrain.checkpoint.names import CHECKPOINTS
from tests.faults.seam import CommandServer
from tests.support.corpus import make_texts, make_tokenizer, write_source, write_tar
from tests.support.eval_data import write_eval_data

RUN = "tiny"
ROW_FIELDS = ("step", "tokens_seen", "loss", "grad_norm", "lr", "num_loops", "skipped", "epoch", "stage")
"""What the rows of two equal runs have in common; the rest of a row is about time and memory."""
TASK: dict[str, Any] = {
    "task": "prosqa_symbolic", "parameters": {"num_nodes": 8, "min_hops": 2, "max_hops": 3},
}  # fmt: skip
"""What is fine-tuned on."""
Command = tuple[str, list[str]]
"""Module with a `main`, and arguments."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of run, in a folder `root` that always has the same path, as runs note the paths of their data."""

    name: str
    command: Callable[[Path], Command]
    prepare: Callable[[Path, CommandServer], None]
    """Makes what is there before the command."""
    result: Callable[[Path], dict[str, Any]]
    """What the command makes, without what differs between two equal runs."""


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file, without fields about time, and the id that a run has for itself."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [_stable(json.loads(line)) for line in lines if line.endswith(b"\n")]


def _stable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in ROW_FIELDS} if "loss" in row else {
        key: value for key, value in row.items() if key not in ("seconds_per_example", "run_id")
    }  # fmt: skip


def checkpoints(folder: Path) -> dict[str, list[str]]:
    """The good checkpoints of a folder by step (one that waits for its replacement too): what they counted, and the
    hashes of their files."""
    found = {}
    for path in sorted(folder.glob("step-*")):
        if path.name.removesuffix(".replaced").count(".") or not (path / "checkpoint.json").exists():
            continue
        body = json.loads((path / "checkpoint.json").read_bytes())["body"]
        hashes = [file["sha256"] for file in body["files"]]
        if hashes == [_hash(path / file["name"]) for file in body["files"] if (path / file["name"]).exists()]:
            found[path.name.removesuffix(".replaced")] = [str(body["meta"].get("counters")), *hashes]
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_result(run_dir: Path) -> dict[str, Any]:
    """Rows, state, newest checkpoint and names of files of a run directory."""
    kept = checkpoints(run_dir / CHECKPOINTS)
    newest = max(kept, default="")
    best = run_dir / "best"
    return {
        "state": (run_dir / "state").read_text() if (run_dir / "state").exists() else None,
        "rows": {path.name: rows(path) for path in sorted(run_dir.rglob("*.jsonl"))},
        "newest": (newest, kept.get(newest)),
        "best": checkpoints(best / CHECKPOINTS) if best.exists() else {},
        "files": _names(run_dir, _is_of_the_result),
    }


def _is_of_the_result(name: str) -> bool:
    """Not a file of a checkpoint, which is compared apart, nor what a failed start noted."""
    of_checkpoint = name.startswith(f"{CHECKPOINTS}/step-") and "." not in name.split("/")[1]
    return not of_checkpoint and not name.startswith("logs/")


def folder_result(folder: Path) -> dict[str, Any]:
    """Every file of a folder by its hash."""
    return {name: _hash(folder / name) for name in _names(folder)}


def inputs(root: Path) -> dict[str, str]:
    """What no command may change."""
    return {name: value for name, value in folder_result(root).items() if not name.startswith(("runs/", "out/"))}


def _names(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in files if wanted(name)]


def make_corpus(root: Path) -> None:
    """Tokenizer, shards, text, evaluation data and the configuration of a run: what all kinds read."""
    root.mkdir()
    write_source(root / "shards", make_texts(24), 2, make_tokenizer(root / "tokenizer.model"))
    _write_text(root / "text")
    write_eval_data(root / "whole")
    for name in ("math_word_problems/svamp.json", "lambada/lambada_openai.jsonl"):
        (path,) = (root / "whole").glob(f"{name}*")
        (root / "tasks" / path.relative_to(root / "whole")).parent.mkdir(parents=True)
        path.rename(root / "tasks" / path.relative_to(root / "whole"))
    shutil.rmtree(root / "whole")
    (root / "train.yaml").write_text(json.dumps(_training(root)))
    (root / "finetune.yaml").write_text(json.dumps(_finetuning(root)))


def _write_text(folder: Path) -> None:
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in make_texts(12)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:4], "no JSON", *lines[4:6], ""]))
    with gzip.GzipFile(folder / "b.jsonl.gz", "wb", mtime=0) as file:
        file.write("\n".join(lines[6:9]).encode())
    (folder / "c.txt").write_text("One document of a text file.\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": make_texts(3, tag="column")}), folder / "d.parquet")


def _training(root: Path) -> dict[str, Any]:
    return {
        "run": {"name": RUN, "root": str(root / "runs")},
        "model": {
            "vocab_size": 320, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 24, "num_loop_layers": 1,
            "num_loops": 2,
        },
        "data": {
            "tokenizer": str(root / "tokenizer.model"), "sources": [{"path": str(root / "shards")}], "num_streams": 2,
            "validation_fraction": 0.2, "num_workers": 0,
        },
        "train": {"steps": 2, "seq_len": 16, "global_batch": 2, "micro_batch": 2, "precision": "fp32"},
        "optimizer": {"lr": 1e-2, "warmup_steps": 1},
        "validation": {"every": 2, "num_sequences": 2, "num_loops": [1, 2]},
        "checkpoint": {"every": 1, "keep_last": 1, "asynchronous": False},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip


def _finetuning(root: Path) -> dict[str, Any]:
    return {
        "run": {"name": RUN, "root": str(root / "runs")},
        "model": {
            "vocab_size": 72, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 24, "num_loop_layers": 1,
            "num_loops": 2,
        },
        "data": {
            "tokenizer": "symbols:ABCDEFGHIJKLMNOPQabcdefghijklmnopqrstuvwxyz0123456789YZ,?=",
            "train": {**TASK, "num_examples": 4}, "validation": {**TASK, "num_examples": 2},
            "test": {**TASK, "num_examples": 2},
        },
        "train": {"epochs": 3, "effective_batch": 4, "micro_batch": 4, "seq_len": 128},
        "curriculum": {"num_stages": 1, "first_stage_epochs": 1, "epochs_per_stage": 1},
        "validation": {"max_new_tokens": 4},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip


def _train(root: Path, *overrides: str) -> Command:
    return "pretrain.train", ["--config", str(root / "train.yaml"), *overrides]


WORKERS = ("data.num_workers=1", "checkpoint.asynchronous=true")
LONGER = ("train.steps=3", "validation.every=1", "checkpoint.keep_last=2")


def _stop_in_the_third_save(root: Path, server: CommandServer) -> None:
    """A run of three steps that was killed in its third save, and once before in a replacement."""
    assert server.run(*_train(root, *LONGER, "checkpoint.keep_last=3")).code == 0
    folder = root / "runs" / RUN / CHECKPOINTS
    (folder / "step-00000003").rename(folder / "step-00000003.tmp-abc.3")
    (folder / "step-00000001").rename(folder / "step-00000001.replaced")
    (root / "runs" / RUN / "state").write_text("running\n")


def _evaluate(root: Path) -> Command:
    return "tools.eval_depth", [
        "--run", str(root / "runs" / RUN), "--num-loops", "1,2", "--num-examples", "2", "--offline", "--data-dir",
        str(root / "tasks"), "--tasks", "lambada_openai,svamp,variable_assignment_code_depth0",
    ]  # fmt: skip


def _prepare(root: Path, *more: str) -> Command:
    return "tools.prepare_data", [
        "--input", str(root / "text" / "*"), "--tokenizer", str(root / "tokenizer.model"), "--output",
        str(root / "out"), "--shard-documents", "6", *more,
    ]  # fmt: skip


def _prepare_parts(root: Path, server: CommandServer) -> None:
    for part in ("1/2", "2/2"):
        assert server.run(*_prepare(root, "--workers", "0", "--part", part)).code == 0


def _pretrain_source(root: Path, server: CommandServer) -> None:
    _must_succeed(server, _train(root, "run.name=source", "validation.every=0"))


def _train_from_weights(root: Path) -> Command:
    """From the weights of another run, evaluated on tasks as it trains."""
    tasks = "validation.tasks=[svamp, variable_assignment_code_depth0]"
    settings = ("validation.tasks_every=1", tasks, "validation.num_examples=2", f"validation.data_dir={root / 'tasks'}")
    return _train(root, f"checkpoint.init_from={root / 'runs' / 'source'}", *settings)


def _lay_tars_out(root: Path, _server: CommandServer) -> None:
    (root / "out").mkdir()
    for number, texts in enumerate((make_texts(3), make_texts(2, tag="other"))):
        members = {f"{key}.txt": text.encode() for key, text in enumerate(texts)}
        write_tar(root / "out" / f"web-{number}.tar", {**members, "0.png": b"no text"})


def _index(root: Path) -> Command:
    return "tools.prepare_data", ["--index", str(root / "out")]


def _finetune(root: Path) -> Command:
    return "finetune.coconut", ["--config", str(root / "finetune.yaml")]


def _nothing(root: Path, server: CommandServer) -> None:
    """The corpus alone."""


def _result_of_run(root: Path) -> dict[str, Any]:
    return run_result(root / "runs" / RUN)


def _result_of_output(root: Path) -> dict[str, Any]:
    return folder_result(root / "out")


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="train", command=_train, prepare=_nothing, result=_result_of_run),
        Kind(
            name="train with workers", command=lambda root: _train(root, *WORKERS), prepare=_nothing,
            result=_result_of_run,
        ),
        Kind(
            name="resume", command=lambda root: _train(root, *LONGER), prepare=_stop_in_the_third_save,
            result=_result_of_run,
        ),
        Kind(
            name="train from weights", command=_train_from_weights, prepare=_pretrain_source, result=_result_of_run,
        ),
        Kind(
            name="train on two ranks", prepare=_nothing, result=_result_of_run,
            command=lambda root: ("tests.faults.ranks", ["2", *_train(root)[1], "train.micro_batch=1"]),
        ),
        Kind(name="index", command=_index, prepare=_lay_tars_out, result=_result_of_output),
        Kind(
            name="prepare", command=lambda root: _prepare(root, "--workers", "0"), prepare=_nothing,
            result=_result_of_output,
        ),
        Kind(
            name="prepare with workers", command=lambda root: _prepare(root, "--workers", "1"), prepare=_nothing,
            result=_result_of_output,
        ),
        Kind(
            name="merge", command=lambda root: _prepare(root, "--merge", "2"), prepare=_prepare_parts,
            result=_result_of_output,
        ),
        Kind(
            name="evaluate", command=_evaluate,
            prepare=lambda root, server: _must_succeed(server, _train(root)), result=_result_of_run,
        ),
        Kind(name="finetune", command=_finetune, prepare=_nothing, result=_result_of_run),
    )
}  # fmt: skip


def _must_succeed(server: CommandServer, command: Command) -> None:
    ended = server.run(*command)
    assert ended.code == 0, ended.said
