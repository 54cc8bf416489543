"""Row 2: answers with a cache are those without.

The reference is the definition: each prompt alone, a pass over all its tokens for each new one, a pass for each loop
count; in fp64. Against it: generation with a cache of all loops' keys and values, prompts padded into one batch; and
the evaluation's continuations and scores, all depths in one pass, on one rank and on the largest layout.
"""

from collections.abc import Iterator

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.plan.text import plural
from pretrain.verification.comparison import Numbers, compare
from pretrain.verification.job import PlannedJob, Tick
from pretrain.verification.miniature import ONE_RANK
from pretrain.verification.prompts import NUM_NEW, Prompts
from pretrain.verification.ranks import run_on_ranks

PLAINLY = "pretrain.verification.work:answer_plainly"
WITH_CACHE = "pretrain.verification.work:answer_with_cache"
ON_RANKS = "pretrain.verification.work:answer"
TOLERANCE = 1e-9
FP64 = {"precision": "fp64"}


def check_answers(job: PlannedJob) -> Iterator[Tick]:
    """A row for generation, and one for evaluation on each number of ranks."""
    config = job.miniature.on(ONE_RANK, train=FP64)
    prompts = Prompts.draw(Tokenizer.load(config.data.tokenizer).vocab_size, job.loops)

    def ask(work: str, config: RunConfig, name: str) -> Numbers:
        size = config.ranks_per_replica * (job.richest.data if name == str(job.richest) else 1)
        return run_on_ranks(work, config, prompts, world_size=size, logs=job.logs(f"cache {name}"))[0]

    plain = ask(PLAINLY, config, "plain")
    found = compare(plain, ask(WITH_CACHE, config, "cached"), TOLERANCE, ("a pass without cache", "the cached pass"))
    what = f"{len(prompts.contexts)} prompts × {NUM_NEW} tokens × {plural(len(job.loops), 'depth')}"
    text = f"cached generation = uncached: {what}, within {found.largest:.0e}"
    yield Tick("cache", not found.first, found.first or text)
    for degrees in dict.fromkeys((ONE_RANK, job.richest)):
        config = job.miniature.on(degrees, train=FP64)
        found = compare(plain, ask(ON_RANKS, config, str(degrees)), TOLERANCE, ("a plain pass", str(degrees)))
        text = f"evaluation on {degrees} = a plain pass at each depth, within {found.largest:.0e}"
        yield Tick("cache", not found.first, found.first or text)
