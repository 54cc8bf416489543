"""How a case is laid out, run and judged: in a child of a process that has imported everything, or of one that has
imported all but torch, or as a process of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.seam import ROOT, CommandServer, Ended
from tests.malformed.case import Case
from tests.support.corpus import make_texts, make_tokenizer, write_source
from tests.support.scaling_rows import sweep, write_rows

LIGHT_MODULES = (
    "pretrain.train", "finetune.coconut", "pretrain.plan.plan", "pretrain.scaling.page", "pandas", "tools.prepare_data",
    "tools.eval_depth", "tools.eval_coconut", "tools.generate", "tools.convert_checkpoint", "tools.scaling_plot",
    "tools.status", "tools.sweep", "tools.coconut_table", "tools.latent_search",
)  # fmt: skip
"""All commands, without torch; what they need is imported before the first child."""
MODULES = (
    *LIGHT_MODULES, "pretrain.trainer", "finetune.trainer", "pretrain.hf.importing", "transformers",
    "pretrain.run.trained_model", "pretrain.generation.generate", "finetune.answers.evaluation",
    "finetune.run.finetuned_model", "pretrain.eval.scorer", "torch._dynamo",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)  # fmt: skip
LIMIT_S, PATIENCE_S = 5.0, 40.0
"""Processor time of an answer; wall time after which a command hangs, on a busy machine."""
MOST_CHARACTERS = 600
"""Of a line."""


def make_world(folder: Path) -> Path:
    """Good inputs of every kind."""
    folder.mkdir()
    tokenizer = make_tokenizer(folder / "tokenizer.model")
    write_source(folder / "shards", make_texts(24), 2, tokenizer)
    lines = [json.dumps({"text": text + " folds"}) + "\n" for text in make_texts(12)]
    (folder / "text.jsonl").write_text("".join(lines))
    for name in ("pretrained", "finetuned"):
        shutil.copytree(ROOT / "tests/golden" / name, folder / name)
        shutil.copy(ROOT / "tests/golden" / f"{name}.yaml", folder)
    rows = sweep(("closed book",), seeds=1, steps=1)
    write_rows(folder / "rows.jsonl", *rows)
    (folder / "train.yaml").write_text(json.dumps(_training(folder)))
    (folder / "sweep.yaml").write_text(
        f"config: {folder}/train.yaml\nmodels: [{{num_loop_layers: 1, num_loops: 2}}]\nseeds: [0]\n"
    )
    return folder


def _training(folder: Path) -> dict[str, object]:
    return {
        "run": {"name": "tiny"},
        "model": {
            "vocab_size": 320, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 24, "num_loop_layers": 1,
        },
        "data": {
            "tokenizer": f"{folder}/tokenizer.model", "sources": [{"path": f"{folder}/shards"}], "num_streams": 4,
            "num_workers": 0,
        },
        "train": {"steps": 2, "seq_len": 16, "global_batch": 4, "micro_batch": 4, "precision": "fp32"},
        "optimizer": {"warmup_steps": 0},
        "validation": {"every": 0},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip


class Bench:
    """Where cases are run.

    Args:
        folder: for all files.
        servers: with torch and without; none: a process for every case.
    """

    def __init__(self, folder: Path, servers: tuple[CommandServer, CommandServer] | None) -> None:
        self._folder, self._servers = folder, servers
        self._world = make_world(folder / "world")

    def problems(self, case: Case) -> list[str]:
        """What is wrong with the answer to a case; empty when all is well."""
        here = self._folder / hashlib.sha256(str(case).encode()).hexdigest()[:12]
        self._lay_out(case, here)
        before = _content(self._world)
        ended = self._run(case, [self._fill(argument, here) for argument in case.arguments])
        found = judge(case, ended, [self._fill(words, here) for words in case.words])
        shutil.rmtree(here, ignore_errors=True)
        if _content(self._world) != before:
            found.append("it changed a file that is not its own")
        return [f"{line}\n{ended.code} in {ended.seconds:.1f} s\n{ended.said[-3000:]}" for line in found]

    def _lay_out(self, case: Case, here: Path) -> None:
        here.mkdir()
        for name in case.copies:
            source = self._world / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, here / name)
        for name, content in case.files.items():
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(self._fill(content, here), encoding="utf-8", errors="surrogatepass")
        for name, target in case.links.items():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).symlink_to(self._fill(target, here))

    def _fill(self, text: str, here: Path) -> str:
        return text.replace("{world}", str(self._world)).replace("{here}", str(here))

    def _run(self, case: Case, arguments: list[str]) -> Ended:
        if self._servers is None:
            return run_process(case.command, arguments, case.environment)
        server = self._servers[case.is_light]
        return server.run(case.command, arguments, environment=case.environment, limit_s=PATIENCE_S)


def run_process(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run a command as users do; what it takes to import is not counted."""
    path = module.replace(".", "/") + ".py"
    start = [path] if module.startswith(("tools.", "finetune.")) else ["-m", module]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment}
    try:
        child = subprocess.run(
            [sys.executable, *start, *arguments], cwd=ROOT, env=variables, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=8 * PATIENCE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ended(code=None, output="", errors="", seconds=PATIENCE_S)
    output, errors = (text.decode(errors="replace") for text in (child.stdout, child.stderr))
    return Ended(code=child.returncode, output=output, errors=errors, seconds=0.0)


def judge(case: Case, ended: Ended, words: Sequence[str]) -> list[str]:
    """What is wrong with an answer that has to hold the words."""
    if ended.code is None:
        return ["it hangs"]
    found = [] if ended.code == case.code else [f"exit code {ended.code}, not {case.code}"]
    lines = [line for line in ended.errors.splitlines() if line.strip()]
    if case.code and not 1 <= len(lines) <= case.most_lines:
        found.append(f"{len(lines)} lines")
    if case.code and max(map(len, lines), default=0) > MOST_CHARACTERS:
        found.append("a line without end")
    said = ended.errors if case.code else "\n" + ended.said
    found += [f"does not say {part!r}" for part in words if part not in said]
    found += ["a traceback"] if "Traceback" in said else []
    found += [f"took {ended.seconds:.1f} s"] if ended.seconds > LIMIT_S else []
    return found


def _content(folder: Path) -> list[tuple[str, int, int]]:
    paths = sorted(folder.rglob("*"))
    return [(str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths if not path.is_dir()]
