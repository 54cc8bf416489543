"""Variable assignment, a reasoning primitive: the value of a variable 0, 1 or 2 copies away from a number.

    depth 0   a=1, b=2, c=6, b=?
    depth 1   a=1, b=2, c=a, d=b, d=?
    depth 2   one more level of copies

Depths 0 and 1 and the two wordings (code, math) are those of Saunshi et al., arXiv 2502.17416, section 3.1, who take
the task from MidAS (arXiv 2409.19044) and score it with five shots. Neither paper prints its prompts. Our choices: five
variables per level (guessing among the numbers shown is then right one time in five, like their models at depth 1),
distinct numbers below 26, and the layout of the code.

Each level sets the same number of variables, and each of them copies a different variable of the level before, so only
the chain of copies tells the numbers apart. Letters are drawn at random. Steps: the assignments from the variable asked
for down to the number.
"""

import re
import string
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from pretrain.schema.section import Section
from pretrain.tasks.task import Example, Rule, Size, Task


class VariableAssignmentParameters(Section):
    depth: int = Field(default=0, ge=0, le=2)
    """Copies between the variable asked for and its number."""
    wording: Literal["code", "math"] = "math"
    """code = a small Python program that prints the variable; math = assignments in one line, the last incomplete."""
    num_variables: int = Field(default=5, ge=2)
    """Variables per level; num_variables · (depth + 1) letters in total, at most 26."""
    num_values: int = Field(default=26, ge=2)
    """Numbers are distinct and drawn from 0 to num_values - 1."""

    @model_validator(mode="after")
    def _check_letters(self) -> "VariableAssignmentParameters":
        if self.num_variables * (self.depth + 1) > len(string.ascii_lowercase):
            levels = f"num_variables={self.num_variables} on {self.depth + 1} levels"
            raise ValueError(f"{levels} need more than the 26 letters")
        if self.num_values < self.num_variables:
            few = f"num_values={self.num_values} are too few different numbers"
            raise ValueError(f"{few} for num_variables={self.num_variables}")
        return self


WORDINGS = {
    "code": (" = ", "\n", "print({})", r"([a-z]) = ([a-z]|\d+)", r"print\(([a-z])\)"),
    "math": ("=", ", ", "{}=?", r"([a-z])=([a-z]|\d+)", r"([a-z])=\?"),
}
"""Sign of an assignment, what separates lines, query, and the patterns of an assignment and of the query."""


class VariableAssignment(Task[VariableAssignmentParameters]):
    name = "variable_assignment"
    parameters_type = VariableAssignmentParameters
    answer_start = "Answer: "

    @property
    def shortcuts(self) -> dict[str, Rule]:
        size = self.parameters.num_variables
        rules: dict[str, Rule] = {
            "one of the numbers": lambda question: re.findall(r"\d+", question),
            "first number": lambda question: re.findall(r"\d+", question)[:1],
            "last number": lambda question: re.findall(r"\d+", question)[-1:],
        }
        if self.parameters.depth:  # without copies this is the answer
            rules["number in the same place"] = lambda question: _in_the_same_place(question, size)
        return rules

    def make(self, random: Random) -> Example:
        parameters = self.parameters
        sign, separator, query, *_ = WORDINGS[parameters.wording]
        size = parameters.num_variables
        letters = random.sample(string.ascii_lowercase, size * (parameters.depth + 1))
        sources = [str(value) for value in random.sample(range(parameters.num_values), size)]
        lines: list[str] = []
        steps: tuple[str, ...] = ()
        asked = int(random.random() * size)  # index, in the current level, of the variable on the chain
        answer = sources[asked]
        for start in range(0, len(letters), size):
            level = letters[start : start + size]
            written = [letter + sign + source for letter, source in zip(level, sources, strict=True)]
            steps = (written[asked], *steps)
            order = random.sample(range(size), size)
            lines += [written[place] for place in order]
            # the next level starts from the shuffled order, so that a variable is not below the one it copies
            sources, asked = [level[place] for place in order], order.index(asked)
        return Example(separator.join([*lines, query.format(sources[asked])]), steps, answer)

    def longest(self, size: Size) -> Example:
        parameters = self.parameters
        sign, separator, query, *_ = WORDINGS[parameters.wording]
        numbers = [str(number) for number in range(parameters.num_values)[-parameters.num_variables :]]
        copy = f"a{sign}a"
        lines = [f"a{sign}{number}" for number in numbers]
        question = [*lines, *[copy] * (parameters.num_variables * parameters.depth), query.format("a")]
        return Example(separator.join(question), (*[copy] * parameters.depth, lines[-1]), numbers[-1])

    def solve(self, question: str) -> str:
        _, separator, _, line, last = WORDINGS[self.parameters.wording]
        *lines, query = question.split(separator)
        asked = re.fullmatch(last, query)
        values: dict[str, str] = {}
        for text in lines:
            assignment = re.fullmatch(line, text, re.ASCII)
            if not assignment or (assignment[2].isalpha() and assignment[2] not in values):
                raise ValueError(f"not an assignment of a number or an earlier variable: {text!r}")
            values[assignment[1]] = values.get(assignment[2], assignment[2])
        if not asked or asked[1] not in values:
            raise ValueError(f"asks for no variable that is set: {query!r}")
        return values[asked[1]]


def _in_the_same_place(question: str, num_variables: int) -> list[str]:
    """The number whose place among the numbers is that of the assignment of what is asked for in its level."""
    asked = re.findall(r"[a-z](?=\)|=\?)", question)[-1]
    variables = re.findall(r"([a-z]) ?= ?(?!\?)", question)
    return [re.findall(r"\d+", question)[variables.index(asked) % num_variables]]
