"""Multiplication in the format of the iCoT data (Deng et al., "From explicit CoT to implicit CoT", arXiv 2405.14838;
files "4_by_4" and "5_by_5" of da03/Internalize_CoT_Step_by_Step).

    7 6 9 2 * 1 6 3 6||7 6 9 2 0 + 0 2 0 8 7 1 ( 7 8 9 0 8 1 ) + 0 0 1 0 9 8 0 ( 7 8 0 1 7 0 1 ) + 0 0 0 2 0 8 7 1 ####
    7 8 0 3 7 8 8 1

Numbers are written with the least significant digit first and spaces between digits. For x · y, digit y_i gives the
term x · y_i · 10^i in len(x) + 1 + i digits, padded with zeros at the significant end. Terms are joined by "+"; each
term except the first and the last is followed by the sum so far, of the same width, in parentheses. The product has
len(x) + len(y) digits. A step is a term with its sum, if any.

The released lines are reproduced from their operands, character by character; the released train files are not
available. Operands are uniform among the numbers with exactly the configured number of digits.
"""

import re
from random import Random

from pydantic import Field

from pretrain.tasks.task import Example, Rule, Size, SplitByProblem, Task


class MultiplicationParameters(SplitByProblem):
    num_left_digits: int = Field(default=4, ge=1, le=20)
    """Digits of x."""
    num_right_digits: int = Field(default=4, ge=1, le=20)
    """Digits of y, hence terms of the sum."""


class Multiplication(Task[MultiplicationParameters]):
    name = "multiplication"
    parameters_type = MultiplicationParameters
    question_end = "||"
    step_end = " "
    answer_start = "#### "

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*"0123456789", " ", "*", "+", "(", ")", "||", "####")

    @property
    def shortcuts(self) -> dict[str, Rule]:
        return {"product of the first digits": _of_first_digits}

    def problem(self, example: Example) -> str:
        if self.parameters.split_by == "question":
            return example.question
        return " * ".join(sorted(example.question.split(" * ")))

    def make(self, random: Random) -> Example:
        left, right = self.parameters.num_left_digits, self.parameters.num_right_digits
        return write_product(*(random.randrange(10 ** (digits - 1), 10**digits) for digits in (left, right)))

    def longest(self, size: Size) -> Example:
        return self.generate(0, 0)  # all are of one length

    def solve(self, question: str) -> str:
        operands = re.fullmatch(r"(\d( \d)*) \* (\d( \d)*)", question, re.ASCII)
        if not operands:
            raise ValueError(f"not a product of two numbers with spaces between their digits: {question!r}")
        left, right = operands[1].replace(" ", ""), operands[3].replace(" ", "")
        product = int(left[::-1]) * int(right[::-1])
        return " ".join(reversed(f"{product:0{len(left) + len(right)}d}"))


def _of_first_digits(question: str) -> list[str]:
    """The product if every digit but the most significant one is 0."""
    left, right = (operand[::-1].replace(" ", "") for operand in question.split(" * "))
    product = int(left[0]) * int(right[0]) * 10 ** (len(left) + len(right) - 2)
    return [_write(product, len(left) + len(right))]


def write_product(left: int, right: int) -> Example:
    """The example of two operands."""
    num_left, num_right = len(str(left)), len(str(right))
    steps: list[str] = []
    total = 0
    for place, digit in enumerate(reversed(str(right))):
        width = num_left + 1 + place
        term = left * int(digit) * 10**place
        total += term
        step = f"+ {_write(term, width)}" if place else _write(term, width)
        steps.append(step if place in (0, num_right - 1) else f"{step} ( {_write(total, width)} )")
    question = f"{_write(left, num_left)} * {_write(right, num_right)}"
    return Example(question, tuple(steps), _write(total, num_left + num_right))


def _write(number: int, width: int) -> str:
    return " ".join(f"{number:0{width}d}"[::-1])
