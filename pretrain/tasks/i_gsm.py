"""Symbolic i-GSM: the value, modulo 7, of one of many quantities defined by equations, answered directly.

    E#I := 4. E#J := E#I. K#N := 2 * E#I + E#J + F#K. F#K := 3. K#N?

Sources: Saunshi et al., arXiv 2502.17416, section 2.1 and appendix A.1, after Ye et al., "Physics of language models:
part 2.1", arXiv 2407.20311.

**Multiplication distributes over the whole right-hand side**: `2 * E#I + E#J + F#K` is 2 · (E#I + E#J + F#K), as in the
paper's solved example.

1. Hierarchy: `num_levels` levels of items. Each level has its own `max_width` letters (A-D, E-H, I-L, M-P), of which 2
   to `max_width` occur.
2. Structure: edges between items of neighbouring levels, at least one down to every item, `num_edges` in total if
   possible. Each edge is a quantity, written `upper#lower`.
3. Dependencies: in a random order of the quantities, the first is a constant. Each other one is a constant with
   probability `constant_share`, else a sum of 1 to `max_terms` earlier ones, half of the time with a multiplier of 2 or
   more. Numbers are uniform below the modulus.
4. Question: all equations in random order, then one quantity that depends on at least `min_needed` equations.

From the paper: depth 4, modulus 7, no abstract quantities, direct answer, and the letters of its example. From the
defaults of Ye et al.: widths 2 to 4 and 15 quantities. How sums are drawn is our choice. Steps: the needed equations in
order of dependency, with numbers substituted; their count is the difficulty of the example.
"""

import hashlib
import re
import string
from collections import Counter
from itertools import pairwise
from random import Random
from typing import NamedTuple

from pydantic import Field, model_validator

from pretrain.tasks.task import Example, Rule, Size, SplitByProblem, Task

MAX_DRAWS = 1000
"""Most problems drawn to find one that is hard enough."""


class IGSMParameters(SplitByProblem):
    modulus: int = Field(default=7, ge=3, le=97)
    """Values are taken modulo this prime; a prime, so that every multiplier is invertible."""
    num_levels: int = Field(default=4, ge=2)
    """Levels in the hierarchy of items."""
    max_width: int = Field(default=4, ge=2)
    """Most items in a level; num_levels · max_width letters in total, at most 26."""
    num_edges: int = Field(default=15, ge=2)
    """Number of quantities and equations; at least one for each item below the first level."""
    max_terms: int = Field(default=3, ge=1)
    """Most quantities on a right-hand side."""
    constant_share: float = Field(default=0.25, ge=0, lt=1)
    """Probability that a quantity is a constant; the first always is."""
    min_needed: int = Field(default=2, ge=1)
    """Fewest equations needed for the answer, including the quantity's own; at most num_edges."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "IGSMParameters":
        if any(self.modulus % divisor == 0 for divisor in range(2, self.modulus)):
            raise ValueError(f"modulus={self.modulus} is not a prime")
        if self.num_levels * self.max_width > len(string.ascii_uppercase):
            sizes = f"num_levels={self.num_levels} of max_width={self.max_width}"
            raise ValueError(f"{sizes} items need more than the 26 letters")
        if self.num_edges < (self.num_levels - 1) * self.max_width:
            items = f"{self.num_levels - 1} levels of up to {self.max_width} items"
            raise ValueError(f"num_edges={self.num_edges} are too few: {items} need one each")
        if self.min_needed > self.num_edges:
            raise ValueError(f"min_needed={self.min_needed} equations are more than num_edges={self.num_edges}")
        return self


class Equation(NamedTuple):
    """`name := multiplier * (sum of terms)`, or `name := constant`."""

    name: str
    terms: tuple[str, ...]
    """Names of the summed quantities; empty for a constant."""
    number: int
    """The multiplier (1 if none is written), or the constant."""

    def __str__(self) -> str:
        if not self.terms:
            return f"{self.name} := {self.number}"
        return f"{self.name} := {f'{self.number} * ' if self.number != 1 else ''}{' + '.join(self.terms)}"


class IGSM(Task[IGSMParameters]):
    name = "i_gsm"
    parameters_type = IGSMParameters
    answer_start = ""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        letters = string.ascii_uppercase[: self.parameters.num_levels * self.parameters.max_width]
        return (*letters, *string.digits, "#", ":=", "+", "*", "=", "(", ")", ".", "?", " ", "\n")

    @property
    def shortcuts(self) -> dict[str, Rule]:
        return {
            "most common number": lambda question: _most_common(re.findall(r"\d+", question)),
            "multiplier of its equation": lambda question: [str(_asked_equation(question)[0])],
            "sum of the constants": lambda question: [
                str(sum(map(int, re.findall(r":= (\d+)\.", question))) % self.parameters.modulus)
            ],
            "constants of its equation's terms": self._sum_of_known_terms,
        }

    def _sum_of_known_terms(self, question: str) -> list[str]:
        """One look: what the equation of the quantity gives if each term is a constant; else any value."""
        multiplier, terms = _asked_equation(question)
        equations = dict(map(_parse, question.split(". ")[:-1]))
        known = [equations[term][1] for term in terms if term in equations]
        if all(len(values) == 1 and values[0].isdigit() for values in known):
            return [str(multiplier * sum(int(values[0]) for values in known) % self.parameters.modulus)]
        return [str(value) for value in range(self.parameters.modulus)]

    def problem(self, example: Example) -> str:
        """With `split_by=problem` the structure, as Ye et al. split by template: all equations and the quantity asked
        for, without numbers, whatever the names and the order."""
        if self.parameters.split_by == "question":
            return example.question
        *lines, query = example.question.split(". ")
        equations = dict(map(_parse, lines))
        forms: dict[str, str] = {}

        def form_of(term: str) -> str:
            """What a quantity is made of, named by a hash; a number is as good as any other."""
            if term not in equations:
                return ""
            if term not in forms:
                multiplier, terms = equations[term]
                parts = f"{multiplier != 1}{sorted(map(form_of, terms))}"
                forms[term] = hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()
            return forms[term]

        asked = form_of(query[:-1])
        return f"{sorted(map(form_of, equations))} {asked}"

    def make(self, random: Random) -> Example:
        modulus, min_needed = self.parameters.modulus, self.parameters.min_needed
        for _ in range(MAX_DRAWS):
            equations = self._draw_equations(random)
            values: dict[str, int] = {}
            needed: dict[str, frozenset[str]] = {}  # all quantities that each one depends on, itself included
            for name, terms, number in equations:
                values[name] = number * sum([values[term] for term in terms]) % modulus if terms else number
                needed[name] = frozenset((name,)).union(*[needed[term] for term in terms])
            names = [name for name, dependencies in needed.items() if len(dependencies) >= min_needed]
            if names:
                asked = random.choice(names)
                steps = tuple(_write_step(equation, values) for equation in equations if equation.name in needed[asked])
                random.shuffle(equations)
                return Example(f"{'. '.join(map(str, equations))}. {asked}?", steps, str(values[asked]))
        hard = f"a quantity that needs min_needed={min_needed} equations"
        raise ValueError(f"task {self.name}: none of {MAX_DRAWS} problems has {hard}: lower it")

    def longest(self, size: Size) -> Example:
        """All quantities are sums of as many as they can be, with a multiplier, and the answer needs them all."""
        parameters, name, largest = self.parameters, "A#B", self.parameters.modulus - 1
        num_equations = min(parameters.num_edges, (parameters.num_levels - 1) * parameters.max_width**2)
        equations = [
            Equation(name, (name,) * min(parameters.max_terms, place), largest) for place in range(num_equations)
        ]
        steps = tuple(_write_step(equation, {name: largest}) for equation in equations)
        return Example(f"{'. '.join(map(str, equations))}. {name}?", steps, str(largest))

    def solve(self, question: str) -> str:
        *lines, query = question.split(". ")
        equations = dict(_parse(line) for line in lines)
        values: dict[str, int] = {}

        def value_of(name: str, asked_for: tuple[str, ...]) -> int:
            if name not in equations or name in asked_for:
                fault = "defined by itself" if name in asked_for else "not defined"
                raise ValueError(f"{name} is {fault} in {question!r}")
            if name not in values:
                multiplier, terms = equations[name]
                total = sum(int(term) if term.isdigit() else value_of(term, (*asked_for, name)) for term in terms)
                values[name] = multiplier * total % self.parameters.modulus
            return values[name]

        if not query.endswith("?"):
            raise ValueError(f"asks for nothing: {question!r}")
        return str(value_of(query[:-1], ()))

    def _draw_equations(self, random: Random) -> list[Equation]:
        """One equation per quantity, in order of dependency."""
        parameters = self.parameters
        names = self._draw_quantities(random)
        random.shuffle(names)
        equations: list[Equation] = []
        for place, name in enumerate(names):
            if place == 0 or random.random() < parameters.constant_share:
                equations.append(Equation(name, (), int(random.random() * parameters.modulus)))
                continue
            num_terms = 1 + int(random.random() * min(parameters.max_terms, place))
            multiplier = 2 + int(random.random() * (parameters.modulus - 2)) if random.random() < 0.5 else 1
            equations.append(Equation(name, tuple(random.sample(names[:place], num_terms)), multiplier))
        return equations

    def _draw_quantities(self, random: Random) -> list[str]:
        """The edges of a random structure, as `upper#lower`."""
        parameters = self.parameters
        levels: list[list[str]] = []
        for level in range(parameters.num_levels):
            letters = string.ascii_uppercase[level * parameters.max_width : (level + 1) * parameters.max_width]
            levels.append(random.sample(letters, 2 + int(random.random() * (parameters.max_width - 1))))
        edges: list[str] = []
        others: list[str] = []
        for uppers, lowers in pairwise(levels):
            for lower in lowers:
                above = int(random.random() * len(uppers))
                for place, upper in enumerate(uppers):
                    (edges if place == above else others).append(f"{upper}#{lower}")
        num_missing = min(parameters.num_edges - len(edges), len(others))
        return edges + random.sample(others, num_missing)


def _write_step(equation: Equation, values: dict[str, int]) -> str:
    name, terms, number = equation
    if not terms:
        return f"{name} = {number}"
    names, numbers = " + ".join(terms), " + ".join([str(values[term]) for term in terms])
    if number != 1:
        names, numbers = f"{number} * ({names})", f"{number} * ({numbers})"
    return f"{name} = {names} = {numbers}" + (f" = {values[name]}" if len(terms) > 1 or number != 1 else "")


def _parse(line: str) -> tuple[str, tuple[int, list[str]]]:
    """Name, multiplier and terms of an equation's text."""
    term = r"(?:[A-Z]#[A-Z]|\d+)"
    match = re.fullmatch(rf"([A-Z]#[A-Z]) := (?:(\d+) \* )?({term}(?: \+ {term})*)", line, re.ASCII)
    if not match:
        raise ValueError(f"not an equation: {line!r}")
    return match[1], (int(match[2] or 1), match[3].split(" + "))


def _asked_equation(question: str) -> tuple[int, list[str]]:
    """Multiplier and terms of the equation of the quantity asked for."""
    *lines, query = question.split(". ")
    return dict(map(_parse, lines))[query[:-1]]


def _most_common(numbers: list[str]) -> list[str]:
    counts = Counter(numbers)
    return [number for number, count in counts.items() if count == max(counts.values())]
