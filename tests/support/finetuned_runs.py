"""Run directories as fine-tuning leaves them, with weights by chance, for tests of what reads them."""

from pathlib import Path
from typing import Any

import torch

from finetune.config import FinetuneConfig
from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.symbols import SymbolTokenizer, write_symbols
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.tasks.registry import make_task

MODEL = {
    "vocab_size": 96,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "ffn_size": 24,
    "num_loop_layers": 1,
    "num_loops": 2,
    "init_std": 0.3,
}
SEQ_LEN = 512


def tokenizer_bytes() -> bytes:
    """Spells ProsQA in symbols, and it and ProntoQA in words too: one token a letter, but for a few words."""
    words = ["Every", " is", " a ", "pus", "Is ", " or ", " ", ".", "\n", "###", ":"]
    return write_symbols([*(make_task("prosqa_symbolic", {}).vocabulary or ()), *"RSTUVWX", *words])


def finetune_config(run_dir: Path, sections: dict[str, Any], task_name: str) -> FinetuneConfig:
    of_graph = {"num_nodes": 16, "min_hops": 2, "max_hops": 4}
    parameters = {"num_hops": 2} if task_name == "prontoqa" else of_graph
    task = {"task": task_name, "parameters": parameters, "num_examples": 6}
    base: dict[str, Any] = {
        "run": {"name": run_dir.name},
        "model": MODEL,
        "data": {"train": task, "validation": task, "test": task, "tokenizer": str(run_dir / "tokenizer.json")},
        "train": {"seq_len": SEQ_LEN},
        "curriculum": {"num_stages": 3},
        "validation": {"max_new_tokens": 8},
    }
    if "checkpoint" in sections:  # init_from: the shape is that of the other run
        del base["model"]
    return FinetuneConfig.model_validate(base | sections)


def save_run(
    run_dir: Path, *, step: int = 7, task: str = "prosqa_symbolic", with_classifier: bool = False, **sections: Any
) -> FinetuneConfig:
    """A run directory with one checkpoint of a model with random weights; the sections replace those of the
    configuration."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "tokenizer.json").write_bytes(tokenizer_bytes())
    config = finetune_config(run_dir, sections, task)
    run = RunConfig.model_validate(
        {
            "model": MODEL,
            "train": {"seq_len": SEQ_LEN, "precision": "fp32"},
            "data": {"tokenizer": str(run_dir / "tokenizer.json")},
        }
    )
    model = LoopedGPT(run.model, SEQ_LEN)
    initialise(model, seed=step)
    pieces = [Piece.whole(f"weights/{name}", parameter.detach()) for name, parameter in model.named_parameters()]
    if with_classifier:
        generator = torch.Generator().manual_seed(0)
        pieces += [
            Piece.whole("stop/weight", torch.randn(1, 16, generator=generator)),
            Piece.whole("stop/bias", torch.zeros(1)),
        ]
    meta = {
        "config": run.model_dump(mode="json"),
        "finetune": config.model_dump(mode="json"),
        "tokenizer_sha256": SymbolTokenizer(tokenizer_bytes()).sha256,
        "epoch": 9,
        "progress": {"step_in_epoch": 0},
    }
    store = CheckpointStore(
        directory=run_dir / "checkpoints",
        rank=0,
        world_size=1,
        nonce="test",
        keep_last=2,
        keep_every=0,
        asynchronous=False,
    )
    store.save(step, pieces, meta)
    store.wait()
    return config
