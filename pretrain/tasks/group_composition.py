"""Group composition: the product of n elements of a finite group (Saunshi et al., arXiv 2502.17416, theorem 5.1; Liu et
al., "Transformers learn shortcuts to automata", 2022).

    symmetric, order 5   [21345][13245][51234]   ->   [52134]
    cyclic, order 60     [59][3]                 ->   [2]

The product is associative, so it can be computed over pairs, pairs of pairs and so on: by the theorem one layer needs
ceil(log2 n) loops, at constant precision, for every finite group. The symmetric group of 5 objects is not solvable, so
its word problem is complete for NC1 (Barrington's theorem); a cyclic group only needs a sum.

A permutation g is written as g(1) g(2) .. g(5); the product g_1 g_2 .. g_n maps i to g_1(g_2(..g_n(i))). Elements are
uniform, hence so is the answer. Each element is one symbol. Steps: the products of the first 2, 3, ..., n - 1 elements,
or of the first 1 + s, 1 + 2s, ... with s elements a step: fewer steps of more work each.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, combinations, permutations
from random import Random
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from pretrain.schema.section import Section
from pretrain.tasks.task import Example, Rule, Size, Task


@lru_cache(maxsize=1 << 15)  # all pairs of the 120 permutations of 5 objects
def _compose(first: str, second: str) -> str:
    """The symbol of the permutation that applies `second`, then `first`."""
    return f"[{''.join([first[int(image)] for image in second[1:-1]])}]"


@lru_cache(maxsize=720)
def _is_odd(symbol: str) -> bool:
    """Whether a permutation is a product of an odd number of swaps; signs of factors multiply in any order."""
    return sum(left > right for left, right in combinations(symbol[1:-1], 2)) % 2 == 1


def _sums(elements: list[str], order: int) -> Iterator[str]:
    return (f"[{total % order}]" for total in accumulate(int(element[1:-1]) for element in elements))


def _permutations(order: int) -> Iterable[str]:
    return ("".join(map(str, images)) for images in permutations(range(1, order + 1)))


class GroupKind(NamedTuple):
    """What a group of some order is."""

    max_order: int
    """720 and 1000 elements, hence symbols, at most."""
    names: Callable[[int], Iterable[str]]
    """Its elements."""
    products: Callable[[list[str], int], Iterator[str]]
    """The products of the first 1, 2, ..., n elements."""


KINDS = {
    "symmetric": GroupKind(6, _permutations, lambda elements, _: accumulate(elements, _compose)),
    "cyclic": GroupKind(1000, lambda order: map(str, range(order)), _sums),
}


class GroupCompositionParameters(Section):
    group: Literal["symmetric", "cyclic"] = "symmetric"
    """symmetric = permutations; cyclic = addition modulo order."""
    order: int = Field(default=5, ge=2)
    """Number of permuted objects, or the modulus."""
    num_elements: int = Field(default=16, ge=2)
    """n: factors of the product."""
    elements_per_step: int = Field(default=1, ge=1)
    """s: elements that a step multiplies on."""

    @model_validator(mode="after")
    def _check_order(self) -> "GroupCompositionParameters":
        if self.order > (most := KINDS[self.group].max_order):
            raise ValueError(f"order={self.order} of a {self.group} group gives too many symbols: it is at most {most}")
        return self


class GroupComposition(Task[GroupCompositionParameters]):
    name = "group_composition"
    parameters_type = GroupCompositionParameters
    question_end = ""
    step_end = ""
    answer_start = ""

    def __init__(self, parameters: GroupCompositionParameters) -> None:
        super().__init__(parameters)
        self._kind = KINDS[parameters.group]
        self._symbols = tuple(f"[{name}]" for name in self._kind.names(parameters.order))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self._symbols

    @property
    def shortcuts(self) -> dict[str, Rule]:
        def product_of(part: slice) -> Rule:
            def rule(question: str) -> list[str]:
                *_, product = self._kind.products(re.findall(r"\[\d+\]", question)[part], self.parameters.order)
                return [product]

            return rule

        def of_the_sign(question: str) -> list[str]:
            sign = sum(map(_is_odd, re.findall(r"\[\d+\]", question))) % 2
            return [symbol for symbol in self._symbols if _is_odd(symbol) == sign]

        return {
            **({"sign of the product": of_the_sign} if self.parameters.group == "symmetric" else {}),
            "last element": product_of(slice(-1, None)),
            "product of the first two": product_of(slice(2)),
            "product of the last two": product_of(slice(-2, None)),
            "product without the first": product_of(slice(1, None)),
        }

    def make(self, random: Random) -> Example:
        each = self.parameters.elements_per_step
        elements = random.choices(self._symbols, k=self.parameters.num_elements)
        *products, answer = self._kind.products(elements, self.parameters.order)
        return Example("".join(elements), tuple(products[each::each]), answer)

    def longest(self, size: Size) -> Example:
        element, num_elements = max(self._symbols, key=len), self.parameters.num_elements
        each = self.parameters.elements_per_step
        return Example(element * num_elements, (element,) * len(range(each, num_elements - 1, each)), element)

    def solve(self, question: str) -> str:
        return self.prefix_answers(question)[-1]

    def prefix_answers(self, question: str) -> tuple[str, ...]:
        elements = re.findall(r"\[\d+\]", question, re.ASCII)
        if not elements or "".join(elements) != question or not set(elements) <= set(self._symbols):
            group = f"{self.parameters.group} group of order {self.parameters.order}"
            raise ValueError(f"not elements of the {group}: {question!r}")
        return tuple(self._kind.products(elements, self.parameters.order))


class GroupProduct(GroupComposition):
    """Group composition with a mark before the answer, so that a model may write steps or not, and is scored either
    way."""

    name = "group_product"
    answer_start = "="

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*super().vocabulary, self.answer_start)
