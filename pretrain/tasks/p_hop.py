"""p-hop induction: follow p induction hops back from the last symbol and answer with the symbol reached.

Sources: Saunshi et al., arXiv 2502.17416, definition A.1; Sanford et al., arXiv 2402.09268.

For a sequence v_1 .. v_n: find_1(i) = max({0} ∪ {j <= i : v_{j-1} = v_i}),  find_p(i) = find_1(find_{p-1}(i)),  answer
v_{find_p(n)}. One hop goes to the symbol after the previous occurrence of the current one. If v_{i-1} = v_i, this and
all further hops stay at i. That is only possible at the first hop: the symbol after the last occurrence of v_i before i
is not v_i again.

Two ways to draw a sequence in which all p hops exist:

forced   as in the paper, whose code was not released: 1. draw the p + 1 visited symbols s_0 .. s_p, neighbours differ;
         2. shuffle the pair "s_t s_{t+1}" of each hop among the other positions (the fillers), keeping the pairs in
         order from s_p (left) to s_0, the last symbol; 3. draw each filler uniformly from all symbols except the one
         that the hop across it searches for. The chain spans the whole sequence.
uniform  independent uniform symbols, drawn again if a hop is missing. Its range is much shorter: with 4 symbols a
         quarter of the examples stay at the last symbol, and the others go back 4 positions per hop on average.

The paper uses 4 symbols, n = 256, p = 16 or 32, and scores the last position. By its corollary 5.3 floor(log2 p) + 2
loops of one layer suffice.
"""

import string
from collections import Counter
from itertools import accumulate, pairwise
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from pretrain.schema.section import Section
from pretrain.tasks.task import Example, Rule, Size, Task


class PHopParameters(Section):
    num_hops: int = Field(default=16, ge=1)
    """p: hops back from the last symbol."""
    length: int = Field(default=256, ge=2)
    """n: symbols in the sequence; forced sampling needs at least 2p + 1."""
    alphabet_size: int = Field(default=4, ge=2, le=26)
    """Number of distinct symbols, the first letters of the alphabet."""
    sampling: Literal["forced", "uniform"] = "forced"
    """forced = hops placed across the whole sequence, as in the paper; uniform = independent symbols."""

    @model_validator(mode="after")
    def _check_length(self) -> "PHopParameters":
        if self.sampling == "forced" and self.length < 2 * self.num_hops + 1:
            short = f"length={self.length} is too short for num_hops={self.num_hops}"
            raise ValueError(f"{short}: forced hops need 2 · num_hops + 1 symbols")
        return self


class PHop(Task[PHopParameters]):
    name = "p_hop"
    parameters_type = PHopParameters
    question_end = ""
    answer_start = ""

    def __init__(self, parameters: PHopParameters) -> None:
        super().__init__(parameters)
        self._symbols = string.ascii_lowercase[: parameters.alphabet_size]
        size = parameters.alphabet_size
        # Translation tables: byte b becomes symbol b mod size, or, for each symbol to avoid, one of the others by
        # b mod (size - 1).
        self._any_symbol = bytes(ord(self._symbols[byte % size]) for byte in range(256))
        self._another = [
            bytes(ord(self._symbols[(avoided + 1 + byte % (size - 1)) % size]) for byte in range(256))
            for avoided in range(size)
        ]
        self._pairs = [[(first + second).encode() for second in self._symbols] for first in self._symbols]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(self._symbols)

    @property
    def shortcuts(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {
            "last symbol": lambda question: question[-1],
            "most common symbol": _most_common,
            "most common of the first sixth": lambda question: _most_common(question[: -(-len(question) // 6)]),
            "first symbol": lambda question: question[0],
        }
        if self.parameters.num_hops > 1:  # or it is the task itself
            rules["one hop"] = lambda question: question[self._first_hops(question)[-1] - 1]
        return rules

    def make(self, random: Random) -> Example:
        return {"forced": self._make_forced, "uniform": self._make_uniform}[self.parameters.sampling](random)

    def _make_uniform(self, random: Random) -> Example:
        while True:  # one sequence in `alphabet_size` has all hops because its first hop stays in place
            question = "".join(random.choices(self._symbols, k=self.parameters.length))
            place = self._follow(question)
            if place:
                return Example(question, (), question[place - 1])

    def longest(self, size: Size) -> Example:
        return Example(self._symbols[0] * self.parameters.length, (), self._symbols[0])

    def solve(self, question: str) -> str:
        self._check(question)
        place = self._follow(question)
        if not place:
            raise ValueError(f"{question!r} has fewer than {self.parameters.num_hops} hops")
        return question[place - 1]

    def prefix_answers(self, question: str) -> tuple[str | None, ...]:
        self._check(question)
        # Repeated squaring: `power` maps each place to the one 1, 2, 4, ... hops away; p picks by its binary digits.
        power, places = self._first_hops(question), list(range(len(question) + 1))
        num_hops = self.parameters.num_hops
        while num_hops:
            if num_hops % 2:
                places = [power[place] for place in places]
            power = [power[place] for place in power]
            num_hops //= 2
        return tuple(question[place - 1] if place else None for place in places[1:])

    def _make_forced(self, random: Random) -> Example:
        p, size = self.parameters.num_hops, self.parameters.alphabet_size
        num_fillers = self.parameters.length - 2 * p - 1
        moves = [1 + byte % (size - 1) for byte in _draw_bytes(random, p, size - 1)]
        visited = [symbol % size for symbol in accumulate(moves, initial=int(random.random() * size))]  # s_0 .. s_p
        order = sorted(random.sample(range(num_fillers + p), p))  # positions of the pairs among pairs and fillers
        # left of the last hop's pair no hop searches: all symbols are allowed
        parts = [_draw_bytes(random, order[0], size).translate(self._any_symbol)]
        fillers, start = _draw_bytes(random, num_fillers - order[0], size - 1), 0
        for hop, (place, following) in zip(range(p - 1, -1, -1), pairwise([*order, num_fillers + p]), strict=True):
            end = start + following - place - 1
            filler = fillers[start:end].translate(self._another[visited[hop]])
            parts += (self._pairs[visited[hop]][visited[hop + 1]], filler)
            start = end
        question = b"".join(parts).decode() + self._symbols[visited[0]]
        return Example(question, (), self._symbols[visited[p]])

    def _follow(self, question: str) -> int:
        """find_p(n), from 1; 0 if there are fewer than p hops."""
        hops, place = self._first_hops(question), len(question)
        for _ in range(self.parameters.num_hops):
            place = hops[place]
        return place

    @staticmethod
    def _first_hops(question: str) -> list[int]:
        """find_1 of 0 .. n, where 0 means no place and maps to itself."""
        after: dict[str, int] = {}  # symbol -> place after its last occurrence so far
        hops = [0]
        for place, symbol in enumerate(question, start=1):
            hops.append(after.get(symbol, 0))
            after[symbol] = place + 1
        return hops

    def _check(self, question: str) -> None:
        if not question or not set(question) <= set(self._symbols):
            raise ValueError(f"not a sequence of {self._symbols}: {question!r}")


def _most_common(symbols: str) -> str:
    """All symbols that none is more common than."""
    counts = Counter(symbols)
    return "".join(symbol for symbol, count in counts.items() if count == max(counts.values()))


def _draw_bytes(random: Random, count: int, size: int) -> bytes:
    """`count` random bytes, uniform mod `size`: bytes beyond the last multiple of `size` are drawn again."""
    beyond = bytes(range(256 - 256 % size, 256))
    drawn = b""
    while len(drawn) < count:
        drawn += random.randbytes(count - len(drawn)).translate(None, beyond)
    return drawn
