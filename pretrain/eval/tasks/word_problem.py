"""Scoring of math word problems whose answer is one number: the first number said, compared as a number.

The harness compares text in its nearest task, ASDiv, so that a right "8.0" or "$8" counts as wrong. The tolerance is
that of program-aided evaluations of the same files (Gao et al., arXiv 2211.10435).
"""

import re
from collections.abc import Mapping, Sequence

NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
TOLERANCE = 1e-3


def score(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Whether the first number of the first result is the answer, for `process_results` of a task's YAML."""
    said = NUMBER.search(results[0])
    is_right = said is not None and abs(float(said[0].replace(",", "")) - float(document["answer"])) <= TOLERANCE
    return {"exact_match": float(is_right)}
