"""Variable assignment, a reasoning primitive: say the value of a variable that was set 0, 1 or 2 assignments away from
a number.

    depth 0   a=1, b=2, c=6, b=?
    depth 1   a=1, b=2, c=a, d=b, d=?
    depth 2   one more level of the same

The examples of depth 0 and 1, and the two wordings, code and math, are of Saunshi et al., arXiv 2502.17416, section
3.1, who take the task from MidAS (arXiv 2409.19044) and score it with five shots. Neither prints its prompts: five
variables a level (so that a guess among the numbers seen is right in one of five, as their models are at depth 1),
distinct numbers below 26 and the layout of the code are choices.

Each level sets as many variables, and each of its variables copies another one of the level before, so every number is
named once a level and nothing but the chain tells them apart. Letters are drawn at random. Steps: the assignments from
the one asked for down to the number.
"""

import re
import string
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from pretrain.config.section import Section
from pretrain.tasks.task import Example, Task


class VariableAssignmentParameters(Section):
    depth: int = Field(default=0, ge=0, le=2)
    """Copies between the variable asked for and its number."""
    wording: Literal["code", "math"] = "math"
    """code = a small Python program that prints the variable; math = assignments in one line, the last to be
    completed."""
    num_variables: int = Field(default=5, ge=2)
    """Variables of a level; num_variables · (depth + 1) letters in all, at most 26."""
    num_values: int = Field(default=26, ge=2)
    """Numbers are drawn from 0 to num_values - 1, all different."""

    @model_validator(mode="after")
    def _check_letters(self) -> "VariableAssignmentParameters":
        if self.num_variables * (self.depth + 1) > len(string.ascii_lowercase):
            raise ValueError(
                f"num_variables={self.num_variables} on {self.depth + 1} levels need more than the 26 letters"
            )
        if self.num_values < self.num_variables:
            raise ValueError(
                f"num_values={self.num_values} are too few different numbers for num_variables={self.num_variables}"
            )
        return self


class VariableAssignment(Task[VariableAssignmentParameters]):
    name = "variable_assignment"
    parameters_type = VariableAssignmentParameters
    answer_start = "Answer: "

    def make(self, random: Random) -> Example:
        parameters = self.parameters
        size = parameters.num_variables
        sign = " = " if parameters.wording == "code" else "="
        letters = random.sample(string.ascii_lowercase, size * (parameters.depth + 1))
        sources = [str(value) for value in random.sample(range(parameters.num_values), size)]
        lines: list[str] = []
        steps: tuple[str, ...] = ()
        asked = int(random.random() * size)  # the chain, as its place in the level at hand
        answer = sources[asked]
        for start in range(0, len(letters), size):
            level = letters[start : start + size]
            written = [letter + sign + source for letter, source in zip(level, sources, strict=True)]
            steps = (written[asked], *steps)
            order = random.sample(range(size), size)
            lines += [written[place] for place in order]
            # In another order, so that a variable does not stand below the one it copies.
            sources, asked = [level[place] for place in order], order.index(asked)
        query = sources[asked]
        if parameters.wording == "code":
            return Example("\n".join([*lines, f"print({query})"]), steps, answer)
        return Example(", ".join([*lines, f"{query}=?"]), steps, answer)

    def solve(self, question: str) -> str:
        if self.parameters.wording == "code":
            *lines, query = question.split("\n")
            line, last = r"([a-z]) = ([a-z]|\d+)", r"print\(([a-z])\)"
        else:
            *lines, query = question.split(", ")
            line, last = r"([a-z])=([a-z]|\d+)", r"([a-z])=\?"
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
