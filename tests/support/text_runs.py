"""A run directory as pretraining on text leaves it, with weights by chance, for tests of what reads it."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.train import train_tokenizer
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise

SEQ_LEN = 64
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 4, "ffn_size": 24, "init_std": 0.3}
LLAMA: dict[str, Any] = {
    "num_key_value_heads": 2,
    "num_prelude_layers": 1,
    "num_loop_layers": 2,
    "num_coda_layers": 1,
    "loop": {"injection": "add"},
}


def save_text_run(folder: Path) -> Path:
    """Two checkpoints, of steps 10 and 20, of different weights."""
    text = [f"the king of {number} men rode out to the sea and back.\nAll was well.\n" for number in range(200)]
    model_file, _ = train_tokenizer(text, vocab_size=300)
    (folder / "tokenizer.model").write_bytes(model_file)
    config = RunConfig.model_validate(
        {
            "model": SMALL | LLAMA | {"vocab_size": 320, "num_loops": 2},
            "train": {"seq_len": SEQ_LEN, "precision": "fp32"},
            "data": {"tokenizer": str(folder / "tokenizer.model")},
        }
    )
    store = CheckpointStore(
        directory=folder / "checkpoints", rank=0, world_size=1, nonce="test", keep_last=2, keep_every=0,
        asynchronous=False,
    )  # fmt: skip
    for step in (10, 20):
        model = LoopedGPT(config.model, SEQ_LEN)
        initialise(model, seed=step)
        pieces = [Piece.whole(f"weights/{name}", parameter.detach()) for name, parameter in model.named_parameters()]
        store.save(
            step, pieces, {"config": config.model_dump(mode="json"), "tokenizer_sha256": sha256(model_file).hexdigest()}
        )
    store.wait()
    return folder
