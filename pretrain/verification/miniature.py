"""The user's configuration in miniature: narrow, on little data, and of the same structure. No torch.

Kept: layers and loops, injection, norms, the ratio of query to key/value heads, tied head, biases, loop regulariser,
loop sampling, document mask, recomputation, optimizer, loss, sources (how many, of which weight, tasks as they are),
tasks between steps and what a layout needs. Cut: width, vocabulary, length of a sequence (not that of tasks, whose
examples must fit), batch, steps, examples, compilation. A degree of parallelism becomes its smallest prime factor, so
that a layout fits on a few ranks. Initial weights grow as the width shrinks, so that every product keeps its size and
no part of the model is too faint to be compared.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.layout import Layout, check_layout
from pretrain.config.run import RunConfig
from pretrain.data.manifest import Header, write_manifest
from pretrain.data.shards import ShardWriter, encode_tokens, text_hash
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.config import ModelSection

HEAD_SIZE = 8
SEQ_LEN = 32
VOCAB_SIZE = 320
NUM_STEPS = 6
SAVE_EVERY = 2
NUM_EXAMPLES = 2
"""Of each task that is scored between steps."""
NUM_DOCUMENTS, MAX_DOCUMENT_TOKENS = 120, 40
"""Of each source of text: several in a sequence, some longer than one."""
WORDS = "the loop of a block runs once again and the river folds deep into old north stones by night"


@dataclass(frozen=True)
class Degrees:
    """How many ranks share a matrix, the layers and the sequences."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        parts = (f"{name} {size}" for name, size in vars(self).items() if size > 1)
        return " × ".join(parts) or "one rank"


ONE_RANK = Degrees()


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """A small job of the same structure as the user's."""

    config: RunConfig
    """With the degrees of `whole`."""
    whole: Degrees
    """The user's degrees, each cut to its smallest prime factor."""

    def layouts(self, max_ranks: int) -> tuple[list[Degrees], list[Degrees]]:
        """The products of these degrees, smallest first: those of at most `max_ranks` ranks, and the others."""
        sizes = ({1, size} for size in (self.whole.tensor, self.whole.pipeline, self.whole.data))
        found = sorted(
            (Degrees(*sizes) for sizes in product(*map(sorted, sizes))), key=lambda degrees: degrees.world_size
        )
        fitting = [degrees for degrees in found if degrees.world_size <= max_ranks]
        return [degrees for degrees in fitting if degrees != ONE_RANK], found[len(fitting) :]

    def on(self, degrees: Degrees, **changes: dict[str, Any]) -> RunConfig:
        """The configuration on other degrees, with changes to its sections."""
        sections = self.config.model_dump(mode="json")
        is_sequence = self.config.parallel.sequence and degrees.tensor > 1
        sections["parallel"] = {"tensor": degrees.tensor, "pipeline": degrees.pipeline, "sequence": is_sequence}
        for section, values in changes.items():
            sections[section] |= values
        return RunConfig.model_validate(sections)

    def layout(self, degrees: Degrees) -> Layout:
        return check_layout(self.on(degrees), degrees.world_size)


def make_miniature(config: RunConfig, layout: Layout, folder: Path) -> Miniature:
    """Cut a job down, and write the data of it into a folder.

    Args:
        config: the user's.
        layout: how it lies on the ranks of the job.
        folder: existing and empty; run directories will be in its `runs`.

    Raises:
        ValueError: there is no source of data, or the tokenizer of a task cannot be read.
        OSError: the folder cannot be written.
    """
    if not config.data.sources:
        raise ValueError("data.sources is empty: name at least one folder of shards, or a task")
    parallel = config.parallel
    whole = Degrees(*map(_smallest_factor, (parallel.tensor, parallel.pipeline, layout.data_parallel)))
    has_tasks = any(source.task is not None for source in config.data.sources)
    tokenizer = config.data.tokenizer if has_tasks else str(_write_tokenizer(folder / "tokenizer.model"))
    vocab_size = Tokenizer.load(tokenizer).vocab_size
    seq_len = config.train.seq_len if has_tasks else SEQ_LEN
    sections = config.model_dump(mode="json")
    sections["run"] |= {"root": str(folder / "runs"), "name": "miniature"}
    sections["model"] |= _narrow(config.model, whole.tensor, vocab_size)
    sections["parallel"] |= {"tensor": whole.tensor, "pipeline": whole.pipeline}
    sections["data"] |= _little_data(config, folder, Tokenizer.load(tokenizer), whole.data)
    sections["data"]["tokenizer"] = tokenizer
    sections["train"] |= _short_training(config, whole, seq_len)
    sections["alarms"] = {}  # of six steps nothing is known
    sections["train"]["teacher"] = {}  # it has another width
    sections["optimizer"]["warmup_steps"] = min(config.optimizer.warmup_steps, 2)
    sections["optimizer"]["decay_steps"] = config.optimizer.decay_steps and min(config.optimizer.decay_steps, 4)
    sections["validation"] |= {"every": SAVE_EVERY, "num_sequences": 4}
    if config.validation.tasks_every:
        sections["validation"] |= {"tasks_every": SAVE_EVERY if has_harness() else 0, "num_examples": NUM_EXAMPLES}
    sections["checkpoint"] |= {
        "every": SAVE_EVERY, "keep_last": 2, "keep_every": 0, "init_from": None, "resume": "auto",
    }  # fmt: skip
    sections["logging"] |= {"every": 1, "wandb": "disabled"}
    return Miniature(config=RunConfig.model_validate(sections), whole=whole)


def has_harness() -> bool:
    """Whether tasks can be scored on this machine."""
    return find_spec("lm_eval") is not None


def _narrow(model: ModelSection, tensor: int, num_tokens: int) -> dict[str, Any]:
    """Width and vocabulary: as few heads as the ratio of the two kinds and the tensor-parallel size allow, and a few
    rows of the embedding that no token uses."""
    kv_heads = tensor if tensor > 1 else min(model.kv_heads, 2)
    num_heads = kv_heads * (model.num_attention_heads // model.kv_heads)
    hidden_size = HEAD_SIZE * num_heads + (0 if model.head_size is None else HEAD_SIZE)
    grouped = None if model.num_key_value_heads is None else kv_heads
    return {
        "vocab_size": (num_tokens // tensor + 1) * tensor,
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": grouped,
        "head_size": None if model.head_size is None else HEAD_SIZE,
        "ffn_size": tensor * max(2, round(hidden_size * model.ffn_size / model.hidden_size / tensor)),
        "init_std": model.init_std * sqrt(max(1.0, model.hidden_size / hidden_size)),
    }


def _short_training(config: RunConfig, whole: Degrees, seq_len: int) -> dict[str, Any]:
    train = config.train
    micro_batch = min(train.micro_batch, 2)
    while config.parallel.sequence and micro_batch * seq_len % whole.tensor:
        micro_batch += 1
    num_micro_batches = max(2, whole.pipeline) * whole.data
    return {
        "steps": NUM_STEPS, "seq_len": seq_len, "micro_batch": micro_batch,
        "global_batch": micro_batch * num_micro_batches, "compile": False, "exit_after": None,
        "hooks": [hook.model_copy(update={"every": SAVE_EVERY}).model_dump(mode="json") for hook in train.hooks],
    }  # fmt: skip


def _little_data(config: RunConfig, folder: Path, tokenizer: Tokenizer, data_parallel: int) -> dict[str, Any]:
    sources = []
    for number, source in enumerate(config.data.sources):
        values = source.model_dump(mode="json")
        if source.path is not None:
            values["path"] = str(_write_source(folder / f"source-{number}", number, tokenizer))
        sources.append(values)
    data = config.data
    return {
        "sources": sources, "num_streams": 4 * data_parallel, "num_workers": min(data.num_workers, 1),
        "prefetch_batches": min(data.prefetch_batches, 2), "validation_fraction": 0.2,
    }  # fmt: skip


def _write_source(folder: Path, number: int, tokenizer: Tokenizer) -> Path:
    """Shards of documents of random tokens, without the special ones."""
    random = np.random.default_rng(number)
    special = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    ids = np.array([token for token in range(tokenizer.vocab_size) if token not in special])
    folder.mkdir()
    rows = []
    for shard in range(3):
        with ShardWriter(folder, f"shard-{shard:06d}.tar", "npy") as writer:
            num_tokens = 0
            for _ in range(NUM_DOCUMENTS // 3):
                document = random.choice(ids, random.integers(0, MAX_DOCUMENT_TOKENS + 1))
                payload = encode_tokens(document, tokenizer.vocab_size)
                writer.add(payload, text_hash(payload))
                num_tokens += len(document)
            rows.append(writer.close(num_tokens))
    header = Header(kind="tokens", tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size)
    write_manifest(folder, header, rows)
    return folder


def _write_tokenizer(path: Path) -> Path:
    """A tokenizer of `VOCAB_SIZE` pieces, of the kind that can be exported."""
    from pretrain.data.tokenizers.train import train_tokenizer

    random = np.random.default_rng(0)
    model, _ = train_tokenizer((" ".join(random.choice(WORDS.split(), 20)) for _ in range(200)), vocab_size=VOCAB_SIZE)
    path.write_bytes(model)
    return path


def _smallest_factor(number: int) -> int:
    """The smallest prime factor; 1 of 1."""
    return next((factor for factor in range(2, number + 1) if number % factor == 0), 1)
