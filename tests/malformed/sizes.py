"""Sizes that no machine has, and loops and layers without end."""

from collections.abc import Iterator

from tests.malformed.case import BEYOND_64_BITS, Case, both_ways, finetune, train

KEYS = """model.vocab_size model.hidden_size model.ffn_size model.num_attention_heads model.num_loop_layers
model.num_prelude_layers model.num_coda_layers model.num_loops model.head_size model.num_key_value_heads
model.loop_regulariser.block_size train.seq_len train.steps train.micro_batch train.global_batch train.max_bad_steps
train.loop_sampling.maximum train.loop_sampling.minimum data.num_streams data.num_workers data.prefetch_batches
validation.every validation.num_sequences validation.num_examples parallel.tensor parallel.pipeline run.seed
checkpoint.every checkpoint.keep_last checkpoint.resume optimizer.warmup_steps optimizer.decay_steps logging.every"""
FINETUNE_KEYS = """model.num_loops train.epochs train.effective_batch train.seq_len train.num_loops
curriculum.num_stages data.train.num_examples validation.batch validation.max_new_tokens engine.tensor
optimizer.warmup_steps"""


def beyond_64_bits() -> Iterator[Case]:
    """Whole numbers of 67 bits."""
    for key in KEYS.split():
        words = (key, BEYOND_64_BITS)
        yield from both_ways(f"{key} of 67 bits", f"{key}={BEYOND_64_BITS}", words=words, is_light=True)
    for key in FINETUNE_KEYS.split():
        yield finetune(f"{key} of 67 bits", f"{key}={BEYOND_64_BITS}", words=(key, BEYOND_64_BITS), is_light=True)
    words = ("validation.num_loops", BEYOND_64_BITS)
    yield train("a list of 67 bits", f"validation.num_loops=[{BEYOND_64_BITS}]", words=words, is_light=True)


def memory() -> Iterator[Case]:
    """More memory than there is."""
    model = "weights, gradients and optimizer state of a model of"
    for key, value, what in (
        ("model.hidden_size", "4000000000", model), ("model.ffn_size", "4000000000000", model),
        ("model.vocab_size", "400000000000", model), ("train.seq_len", "2000000000000", "train.seq_len=2000000000000"),
        ("data.num_streams", "4000000000000", "the cursors of data.num_streams=4000000000000"),
        ("train.global_batch", "4000000", "micro-batches"),
    ):  # fmt: skip
        size = "GiB" if key != "train.global_batch" else "passes"
        yield train(f"{key}={value}", f"{key}={value}", words=(what, size))
    batch = ("train.global_batch=4000000000000", "train.micro_batch=4000000000000")
    yield train("a micro-batch of 4e12", *batch, words=("train.global_batch=4000000000000", "GiB"))
    held_out = ("validation.every=1", "validation.num_sequences=100000000000000")
    yield train("1e14 sequences of validation", *held_out, words=("validation.num_sequences=100000000000000", "GiB"))
    yield finetune("a hidden size of 4e9", "model.hidden_size=4000000000", words=(model, "GiB"))
    yield finetune("a feed-forward of 4e12", "model.ffn_size=4000000000000", words=(model, "GiB"))


def without_end() -> Iterator[Case]:
    """Loops, layers and steps that would be worked on for ever."""
    for key, value in (
        ("model.num_loop_layers", "100000000"), ("model.num_prelude_layers", "100000000"),
        ("model.num_coda_layers", "100000000"), ("model.num_loops", "1000000000"),
        ("validation.num_loops", "[1000000000]"),
        ("train.loop_sampling", "{distribution: uniform, maximum: 1000000000}"),
        ("train.loop_sampling", "{distribution: uniform, minimum: 1000000, maximum: 1000000000}"),
    ):  # fmt: skip
        words = (key.partition(".")[0], "layers deep, 100,000 at most")
        yield from both_ways(f"{key}={value}", f"{key}={value}", words=words, is_light=True)
    pipeline = ("train.global_batch=4000000000", "parallel.pipeline=2", "model.num_loop_layers=2", "--dry-run")
    words = ("train.global_batch=4000000000", "micro-batches", "at most")
    yield train("1e9 micro-batches in a ring", *pipeline, words=words, is_light=True)
    spread = "train.loop_sampling={distribution: poisson_lognormal, sigma: 1e3}"
    yield from both_ways("a spread of 1e3", spread, words=("train.loop_sampling.sigma", "at most"), is_light=True)
    source = "{path: {world}/shards, weight: 1e308}"
    words = ("data.sources", "weights")
    yield from both_ways("endless weights", f"data.sources=[{source}, {source}]", words=words, is_light=True)
    yield finetune("1e8 layers", "model.num_loop_layers=100000000", words=("layers deep",), is_light=True)
    yield finetune("1e9 loops", "train.num_loops=1000000000", words=("train.num_loops", "layers deep"))
    yield finetune("1e9 loops, dry run", "train.num_loops=1000000000", "--dry-run", words=("layers deep",))
    yield finetune("1e15 epochs, dry run", "train.epochs=1000000000000000", "--dry-run", words=("train.epochs",))
    examples = "data.train.num_examples=10000000000000"
    yield finetune("a task of 1e13 examples", examples, words=("data.train.num_examples",), is_light=True)


def cases() -> Iterator[Case]:
    for kind in (beyond_64_bits, memory, without_end):
        yield from kind()
