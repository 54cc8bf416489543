"""SQuAD v2: a span of the passage, or no answer (Rajpurkar et al., arXiv 1806.03822), as the harness's `squadv2` asks
and scores it.

Two requests a question: the answer generated, and the probability of " unanswerable". Scores are shares of 1 (the
harness gives percent) and are computed here, because the harness fetches its metric from the network:

- `exact`, `f1`: of the generated answer after normalisation, the best over the accepted answers; `HasAns_`, `NoAns_`:
  the same over the questions that have an answer or none. What is accepted for an unanswerable question is the empty
  text alone, as in the original script.
- `best_exact`, `best_f1`: the same scores if no answer is given above the best threshold on the probability of "
  unanswerable".
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

SCORES = ("exact", "f1")
UNANSWERABLE = " unanswerable"


class Outcome(NamedTuple):
    """One question, for the choice of a threshold."""

    no_answer_probability: float
    gain: float
    """What answering adds to the total: its score, or -1 for an answer to an unanswerable question."""
    has_answer: bool


class SquadTask(ConfigurableTask):
    """The task of a YAML whose prompt and files are those of any other."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str | list[str], **kwargs: Any) -> list[Instance]:
        """The generated answer, and the log-likelihood of having none."""
        metadata = kwargs["metadata"]
        generation = dict(self.config.generation_kwargs or {})
        return [
            Instance(request_type="generate_until", doc=doc, arguments=(ctx, generation), idx=0, metadata=metadata),
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, UNANSWERABLE), idx=0, metadata=metadata),
        ]

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """Scores of a question: a metric over a part of the questions is absent for the others."""
        said, (log_probability, _) = results
        accepted = [text for text in doc["answers"]["text"] if _normalise(text)] or [""]
        has_answer = bool(doc["answers"]["text"])
        scores = {"exact": max(exact(said, text) for text in accepted), "f1": max(f1(said, text) for text in accepted)}
        part = "HasAns_" if has_answer else "NoAns_"
        outcomes = {
            f"best_{name}": Outcome(math.exp(log_probability), score if has_answer else -float(bool(said)), has_answer)
            for name, score in scores.items()
        }
        return scores | {part + name: score for name, score in scores.items()} | outcomes

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], float]]:
        """The mean of each score, or its value at the best threshold."""
        means = {prefix + name: mean for prefix in ("", "HasAns_", "NoAns_") for name in SCORES}
        return means | {f"best_{name}": best_score for name in SCORES}

    def higher_is_better(self) -> dict[str, bool]:
        """All of them."""
        return dict.fromkeys(self.aggregation(), True)


def exact(said: str, accepted: str) -> float:
    """Whether two answers are the same but for case, punctuation, articles and spaces."""
    return float(_normalise(said) == _normalise(accepted))


def f1(said: str, accepted: str) -> float:
    """Harmonic mean of precision and recall over words; 1 for two empty answers."""
    ours, theirs = _normalise(said).split(), _normalise(accepted).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def best_score(outcomes: Sequence[Outcome]) -> float:
    """The mean score if every question above one threshold goes unanswered, at the best threshold."""
    total = float(sum(not outcome.has_answer for outcome in outcomes))
    best = total
    for outcome in sorted(outcomes, key=lambda outcome: outcome.no_answer_probability):
        total += outcome.gain
        best = max(best, total)
    return best / len(outcomes)


def _normalise(text: str) -> str:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
