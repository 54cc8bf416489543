"""p-hop induction: follow p induction hops back from the last symbol and answer with the symbol reached.

Sources: Saunshi et al., arXiv 2502.17416, definition A.1; Sanford et al., arXiv 2402.09268.

For a sequence v_1 .. v_n: find_1(i) = max({0} ∪ {j <= i : v_{j-1} = v_i}),  find_p(i) = find_1(find_{p-1}(i)),  answer
v_{find_p(n)}. One hop goes to the symbol after the previous occurrence of the current one. If v_{i-1} = v_i, this and
all further hops stay at i. That is only possible at the first hop: the symbol after the last occurrence of v_i before i
is not v_i again.

Three ways to draw a sequence in which all p hops exist:

forced   as in the paper, whose code was not released: 1. draw the p + 1 visited symbols s_0 .. s_p, neighbours differ;
         2. shuffle the pair "s_t s_{t+1}" of each hop among the other positions (the fillers), keeping the pairs in
         order from s_p (left) to s_0, the last symbol; 3. draw each filler uniformly from all symbols except the one
         that the hop across it searches for. The chain spans the whole sequence.
uniform  independent uniform symbols, drawn again if a hop is missing. Its range is much shorter: with 4 symbols a
         quarter of the examples stay at the last symbol, and the others go back 4 positions per hop on average.
rooted   forced, and the symbol reached stands nowhere before: no hop leads on from there. So a question itself tells
         where to stop, by the one rule for any p, and questions of more hops than were trained can be asked. Loss on
         the answer to every prefix is on those with at most p hops.

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
    """n: symbols in the sequence; forced and rooted sampling need at least 2p + 1."""
    alphabet_size: int = Field(default=4, ge=2, le=26)
    """Number of distinct symbols, the first letters of the alphabet."""
    sampling: Literal["forced", "uniform", "rooted"] = "forced"
    """forced = hops placed across the whole sequence, as in the paper; uniform = independent symbols; rooted = forced,
    and no hop leads on from the symbol reached."""

    @model_validator(mode="after")
    def _check_length(self) -> "PHopParameters":
        if self.sampling != "uniform" and self.length < 2 * self.num_hops + 1:
            short = f"length={self.length} is too short for num_hops={self.num_hops}"
            raise ValueError(f"{short}: {self.sampling} hops need 2 · num_hops + 1 symbols")
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
        if self.parameters.sampling == "rooted":  # what one of fewer hops answers, and one that sees where hops can end
            for fewer in range(2, self.parameters.num_hops):
                rules[f"{fewer} hops"] = lambda question, fewer=fewer: question[self._follow(question, fewer) - 1]
            for nth, name in {1: "second", 2: "third", -2: "last but one", -1: "last"}.items():
                rules[f"{name} new symbol"] = lambda question, nth=nth: _new_symbols(question)[nth : nth + 1 or None]
        return rules

    def make(self, random: Random) -> Example:
        return self._make_uniform(random) if self.parameters.sampling == "uniform" else self._make_forced(random)

    def _make_uniform(self, random: Random) -> Example:
        while True:  # one sequence in `alphabet_size` has all hops because its first hop stays in place
            question = "".join(random.choices(self._symbols, k=self.parameters.length))
            place = self._follow(question, self.parameters.num_hops)
            if place:
                return Example(question, (), question[place - 1])

    def longest(self, size: Size) -> Example:
        if self.parameters.sampling == "rooted":  # one symbol alone is not answered: its hops stay where they are
            return self._make_forced(Random(0))
        return Example(self._symbols[0] * self.parameters.length, (), self._symbols[0])

    def solve(self, question: str) -> str:
        answer, num_hops = self.prefix_answers(question)[-1], self.parameters.num_hops
        if answer is None:
            than = "more" if self.parameters.sampling == "rooted" else "fewer"
            raise ValueError(f"{question!r} has {than} than {num_hops} hops")
        return answer

    def prefix_answers(self, question: str) -> tuple[str | None, ...]:
        self._check(question)
        if self.parameters.sampling == "rooted":
            return self._roots(question)
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
        if self.parameters.sampling == "rooted":  # but the one that it leads to
            parts = [_draw_bytes(random, order[0], size - 1).translate(self._another[visited[p]])]
        else:
            parts = [_draw_bytes(random, order[0], size).translate(self._any_symbol)]
        fillers, start = _draw_bytes(random, num_fillers - order[0], size - 1), 0
        for hop, (place, following) in zip(range(p - 1, -1, -1), pairwise([*order, num_fillers + p]), strict=True):
            end = start + following - place - 1
            filler = fillers[start:end].translate(self._another[visited[hop]])
            parts += (self._pairs[visited[hop]][visited[hop + 1]], filler)
            start = end
        question = b"".join(parts).decode() + self._symbols[visited[0]]
        return Example(question, (), self._symbols[visited[p]])

    def _follow(self, question: str, num_hops: int) -> int:
        """find_p(n) of p hops, from 1; 0 if there are fewer."""
        hops, place = self._first_hops(question), len(question)
        for _ in range(num_hops):
            place = hops[place]
        return place

    def _roots(self, question: str) -> tuple[str | None, ...]:
        """For each prefix the symbol from which no hop leads on, if at most p hops lead there."""
        answers: list[str | None] = []
        numbers, roots = [0], [0]  # of hops from a place, and where they end; the place 0 is none
        for place, hop in enumerate(self._first_hops(question)[1:], start=1):
            endless = hop == place  # v_{i-1} = v_i: more than any number
            numbers.append(self.parameters.num_hops + 1 if endless else numbers[hop] + 1 if hop else 0)
            roots.append(roots[hop] if hop and not endless else place)
            answers.append(question[roots[place] - 1] if numbers[place] <= self.parameters.num_hops else None)
        return tuple(answers)

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


def _new_symbols(question: str) -> str:
    """Each symbol once, in the order of their first occurrences, from which no hop leads on."""
    return "".join(dict.fromkeys(question))


def _draw_bytes(random: Random, count: int, size: int) -> bytes:
    """`count` random bytes, uniform mod `size`: bytes beyond the last multiple of `size` are drawn again."""
    beyond = bytes(range(256 - 256 % size, 256))
    drawn = b""
    while len(drawn) < count:
        drawn += random.randbytes(count - len(drawn)).translate(None, beyond)
    return drawn
