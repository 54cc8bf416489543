"""n-ary addition: the sum of n three-digit numbers, answered directly (Saunshi et al., arXiv 2502.17416, section 2.1).

    315+120+045+824=1304

Operands are uniform in [0, 999] and padded with zeros; the sum is not padded. There are no steps. The paper trains on a
uniform mixture of n in {2, 4, 8, 16, 32} with one token per character, and scores n = 8, 16, 24 (unseen in training)
and 32 separately.
"""

import re
from random import Random

from pydantic import Field, field_validator

from pretrain.tasks.task import Example, Rule, Size, SplitByProblem, Task

DIGITS = tuple("0123456789")


class AdditionParameters(SplitByProblem):
    num_operands: tuple[int, ...] = Field(default=(2, 4, 8, 16, 32), min_length=1)
    """n: drawn from these for each example, all equally likely."""
    num_digits: int = Field(default=3, ge=1, le=15)
    """Digits of an operand, including padding."""

    @field_validator("num_operands")
    @classmethod
    def _check_operands(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 2:
            raise ValueError("a sum has at least 2 operands")
        return value


class Addition(Task[AdditionParameters]):
    name = "addition"
    parameters_type = AdditionParameters
    question_end = ""
    answer_start = ""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*DIGITS, "+", "=")

    @property
    def shortcuts(self) -> dict[str, Rule]:
        largest = 10**self.parameters.num_digits - 1
        return {
            "sum to be expected": lambda question: [str(len(_operands(question)) * largest // 2)],
            "sum without carries": lambda question: [_without_carries(_operands(question))],
            "first digits alone": lambda question: [_of_first_digits(_operands(question), len(str(largest)) - 1)],
        }

    def problem(self, example: Example) -> str:
        if self.parameters.split_by == "question":
            return example.question
        return "+".join(sorted(_operands(example.question)))

    def make(self, random: Random) -> Example:
        parameters = self.parameters
        operands = random.choices(range(10**parameters.num_digits), k=random.choice(parameters.num_operands))
        written = f"%0{parameters.num_digits}d"
        return Example("+".join([written % operand for operand in operands]) + "=", (), str(sum(operands)))

    def longest(self, size: Size) -> Example:
        num_operands, largest = max(self.parameters.num_operands), 10**self.parameters.num_digits - 1
        return Example("+".join([str(largest)] * num_operands) + "=", (), str(num_operands * largest))

    def solve(self, question: str) -> str:
        if not re.fullmatch(r"\d+(\+\d+)+=", question, re.ASCII):
            raise ValueError(f"not a sum: {question!r}")
        return str(sum(map(int, question[:-1].split("+"))))


def _operands(question: str) -> list[str]:
    return question[:-1].split("+")


def _without_carries(operands: list[str]) -> str:
    columns = zip(*operands, strict=True)
    return "".join(str(sum(map(int, column)) % 10) for column in columns).lstrip("0") or "0"


def _of_first_digits(operands: list[str], num_others: int) -> str:
    """The sum if all digits but the first of each operand are at their mean."""
    rest = len(operands) * (10**num_others - 1) // 2
    return str(sum(int(operand[0]) for operand in operands) * 10**num_others + rest)
