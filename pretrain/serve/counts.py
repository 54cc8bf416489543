"""What a server counts, in the text format of Prometheus."""

import time
from collections import Counter
from collections.abc import Mapping

from pretrain.serve.worker import EngineWorker

FORMAT = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "looped_"


class ServerCounts:
    """Sums since the server began; of its event loop's thread."""

    def __init__(self) -> None:
        self.started = time.time()
        self.requests: Counter[tuple[str, int]] = Counter()
        """By path and status; 499: the client went."""
        self.prompt_tokens = self.new_tokens = self.loops = 0
        self.first_token_s = self.answer_s = 0.0
        self.num_first = self.num_answers = 0

    def text(self, worker: EngineWorker) -> str:
        """All of them, and how many requests are open and waiting now."""
        lines: list[str] = []

        def metric(name: str, kind: str, what: str, values: Mapping[str, float]) -> None:
            lines.extend([f"# HELP {PREFIX}{name} {what}", f"# TYPE {PREFIX}{name} {kind}"])
            lines.extend(f"{PREFIX}{name}{labels} {value:.10g}" for labels, value in values.items())

        by_status = {
            f'{{path="{path}",status="{status}"}}': count for (path, status), count in sorted(self.requests.items())
        }
        metric("requests_total", "counter", "Requests that were answered.", by_status)
        metric("prompt_tokens_total", "counter", "Tokens of prompts.", {"": self.prompt_tokens})
        metric("new_tokens_total", "counter", "Tokens that were generated.", {"": self.new_tokens})
        metric("loops_total", "counter", "Loops that these took.", {"": self.loops})
        metric("sequences_open", "gauge", "Sequences under way.", {"": worker.num_open})
        metric("sequences_waiting", "gauge", "Requests that wait for a slot.", {"": worker.num_waiting})
        for name, what, seconds, count in (
            ("first_token_seconds", "Until the first token.", self.first_token_s, self.num_first),
            ("answer_seconds", "Until the end of an answer.", self.answer_s, self.num_answers),
        ):
            metric(name, "summary", what, {})
            lines.extend([f"{PREFIX}{name}_sum {seconds:.10g}", f"{PREFIX}{name}_count {count}"])
        metric("start_time_seconds", "gauge", "When the server began, in seconds since 1970.", {"": self.started})
        return "\n".join(lines) + "\n"
