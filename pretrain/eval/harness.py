"""The evaluation harness (EleutherAI's lm-evaluation-harness): all loop counts of a model at the cost of the largest.

The harness asks for one loop count at a time. `LoopedLM` scores all its loop counts at the first request and remembers
them; the requests for the other loop counts are look-ups. Texts differ between loop counts and are generated for each.

Texts are encoded and cut as the harness's own adapter for transformers does it (a bos in front where the tokenizer puts
one), so that an exported or imported model scores the same there. Of a whole text that includes the bos itself, given
the bos that every text begins after; without `add_bos` only the text counts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.eval.exits import ExitScorer
from pretrain.eval.scorer import Likelihood, Scorer
from pretrain.generation.sampling import Generation
from pretrain.generation.stop_strings import StopStrings, cut_at

DEFAULT_NEW_TOKENS = 256


class LoopedLM(TemplateLM):
    """A looped model for the harness.

    Args:
        scorer: the model, on all ranks; this is rank 0.
        tokenizer: its tokenizer.
        loops: loop counts to score.
        max_length: longest sequence, in tokens.
        add_bos: whether a text begins with the bos. Default: as the tokenizer says.
    """

    def __init__(
        self, scorer: Scorer | ExitScorer, tokenizer: Tokenizer, loops: Sequence[int], *, max_length: int,
        add_bos: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scorer = scorer
        self.text = tokenizer
        self.loops = tuple(loops)
        self.max_length = max_length
        self.add_bos = tokenizer.adds_bos if add_bos is None else add_bos
        self._current = self.loops[0]
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Likelihood]] = {}
        self._cut: set[tuple[int, ...]] = set()

    @contextmanager
    def at(self, num_loops: int) -> Iterator["LoopedLM"]:
        """While open, the harness sees the model at this loop count."""
        before, self._current = self._current, num_loops
        try:
            yield self
        finally:
            self._current = before

    def forget(self) -> None:
        """Drop what is remembered, between tasks."""
        self._known.clear()
        self._cut.clear()

    @property
    def about_cut(self) -> str:
        """Of the texts of this task that did not fit; empty if all did. The harness has its own adapter say so."""
        if not self._cut:
            return ""
        longest = max(map(len, self._cut))
        texts = f"{len(self._cut)} texts of up to {longest} tokens lost their beginnings"
        return f"{texts}: the model was trained on {self.max_length}"

    @property
    def eot_token_id(self) -> int:
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.text.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.text.sha256[:12]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.text.encode(string)
        return [self.text.bos_id, *ids] if (self.add_bos if add_special_tokens is None else add_special_tokens) else ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        return [
            (likelihood.log_probability, likelihood.is_greedy)
            for likelihood in self._likelihoods([(list(c), list(e)) for _, c, e in requests])
        ]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs, counts = [], []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            cut = [utils.make_disjoint_window(window) for window in windows]
            pairs += [(list(context), list(continuation)) for context, continuation in cut]
            counts.append(len(cut))
        values = iter(self._likelihoods(pairs))
        return [sum(next(values).log_probability for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, (_, options) in enumerate(request.arguments for request in requests):
            alike.setdefault(repr(sorted(options.items())), []).append(number)
        for numbers in alike.values():
            for number, text in zip(numbers, self._generate([requests[each] for each in numbers]), strict=True):
                answers[number] = text
        return answers

    def _generate(self, requests: list[Instance]) -> list[str]:
        """Requests of the same settings."""
        options: dict[str, Any] = requests[0].arguments[1]
        until = options.get("until") or []
        strings = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        most = int(options.get("max_gen_toks") or options.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
        most = min(most, self.max_length - 1)
        temperature = float(options.get("temperature") or 0) if options.get("do_sample") else 0.0
        settings = Generation(
            max_new_tokens=most, vocab_size=self.text.vocab_size, end_ids=self.text.end_ids, num_loops=self._current,
            temperature=max(temperature, 0.0), top_p=float(options.get("top_p", 1.0)) if temperature > 0 else 1.0,
        )  # fmt: skip
        prompts = [self._cut_prompt(self.tok_encode(request.args[0]), self.max_length - most) for request in requests]
        rows = self.scorer.continuations(prompts, settings, StopStrings(self.text, strings))
        return [cut_at(self.text.decode(row), strings) for row in rows]

    def _cut_prompt(self, ids: list[int], room: int) -> list[int]:
        """A prompt as the harness's own adapter cuts it, unless it fits: the last new token is never an input. It is
        never empty."""
        if len(ids) > room + 1:
            self._cut.add(tuple(ids))
            ids = ids[-room:]
        return ids or [self.prefix_token_id]

    def _likelihoods(self, pairs: list[tuple[list[int], list[int]]]) -> list[Likelihood]:
        """At the current loop count; pairs that are not remembered are scored at all loop counts."""
        keys = [self._key(context, continuation) for context, continuation in pairs]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        if missing:
            self._known |= zip(missing, self.scorer.likelihoods(missing, self.loops), strict=True)
        place = self.loops.index(self._current)
        return [self._known[key][place] for key in keys]

    def _key(self, context: list[int], continuation: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the model sees: the last `max_length` tokens before the last one; a context is never empty."""
        if not continuation:
            raise ValueError(f"a continuation without tokens cannot be scored (context of {len(context)} tokens)")
        whole = context + continuation
        if len(whole) > self.max_length + 1:
            self._cut.add(tuple(whole))
        kept = whole[-(self.max_length + 1) :]
        size = min(len(continuation), len(kept) - 1)
        return tuple(kept[:-size]), tuple(kept[-size:])
