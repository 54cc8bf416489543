"""ProntoQA: is it true or false that a person has a property? A chain of rules says it, among rules that lead nowhere.

    Brimpuses are grimpuses. Each vumpus is a brimpus. Grimpuses are not wooden. ... Max is a vumpus. True or false: Max
    is wooden. steps Max is a vumpus. Each vumpus is a brimpus. / Max is a brimpus. Brimpuses are grimpuses. / ... / Max
    is not wooden. answer False

Source: Saparov and He, arXiv 2210.01240; the set-up is that of Hao et al., arXiv 2412.06769: 5 hops, fictional
concepts, sentences in random order, relevant distractors, two sentences of the proof a step. All of 10,000 examples of
that set-up have the same skeleton:

- a chain of `num_hops` concepts: the person is the first, each is the next, and the last has the property asked for;
- beside each concept of the chain a second one that it is too, with a property; the last has one more, without a
  property;
- each concept of the chain but the last has a property of its own;
- the person is also a concept outside, which has a property and is another concept;
- a concept that nobody is has the opposite of the property asked for, so that matching words does not tell the answer.

Properties of one family (red, blue) are never in the same example, bar the one asked for and its opposite. How often a
property is negated is measured on those 10,000 (they differ by place as the original draws again where it gets stuck);
a test compares it.
"""

import re
from collections import defaultdict
from itertools import pairwise
from random import Random

from pydantic import Field

from pretrain.config.section import Section
from pretrain.tasks.task import Example, Task

# fmt: off
PERSONS = (
    "Alex", "Fae", "Max", "Polly", "Rex", "Sally", "Sam", "Stella", "Wren",
)
CONCEPTS = (
    "brimpus", "dumpus", "gorpus", "grimpus", "impus", "jompus", "lempus", "lorpus", "numpus", "rompus", "shumpus",
    "sterpus", "tumpus", "vumpus", "wumpus", "yumpus", "zumpus",
)
# fmt: on
FAMILIES = (
    ("blue", "red", "brown", "orange"),
    ("small", "large"),
    ("metallic", "wooden", "luminous", "liquid"),
    ("transparent", "opaque"),
    ("nervous", "happy", "feisty", "shy"),
    ("bright", "dull"),
    ("sweet", "sour", "spicy", "bitter"),
    ("floral", "fruity", "earthy"),
    ("hot", "cold", "temperate"),
    ("kind", "mean", "angry", "amenable", "aggressive"),
    ("melodic", "muffled", "discordant", "loud"),
    ("slow", "moderate", "fast"),
    ("windy", "sunny", "overcast", "rainy", "snowy"),
)
"""Properties of which a thing has one."""

NEGATED_ON_CHAIN, NEGATED_ASKED, NEGATED_BESIDE = 0.273, 0.466, 0.328
"""Share of negated properties: of concepts of the chain, of its last (the one asked for), and of concepts beside it."""

Fact = tuple[str, bool]
"""A concept or property, and whether it holds; if not, its opposite does."""

_EACH = re.compile(r"(?:Each|Every) ([a-z]+pus) is (not )?(?:an? )?([a-z]+)\.")
_PLURAL = re.compile(r"([A-Z][a-z]*pus)es are (not )?([a-z]+?)(?:(?<=pus)es)?\.")
_PERSON = re.compile(r"([A-Z][a-z]+) is (not )?(?:an? )?([a-z]+)\.")


class ProntoQAParameters(Section):
    num_hops: int = Field(default=5, ge=1, le=6)
    """Rules of the proof: num_hops - 1 from concept to concept and one to the property."""


class ProntoQA(Task[ProntoQAParameters]):
    name = "prontoqa"
    parameters_type = ProntoQAParameters

    def make(self, random: Random) -> Example:
        person = random.choice(PERSONS)
        size = self.parameters.num_hops
        names = random.sample(CONCEPTS, 2 * size + 4)
        chain, beside = names[:size], names[size : 2 * size]
        childless, outside, above_outside, nobody = names[2 * size :]
        properties = [random.choice(family) for family in random.sample(FAMILIES, 2 * size + 1)]
        asked, is_negated = properties[0], random.random() < NEGATED_ASKED

        proof = [_write_rule(concept, (upper, True), random) for concept, upper in pairwise(chain)]
        proof.append(_write_rule(chain[-1], (asked, not is_negated), random))
        facts: list[tuple[str, Fact]] = [*zip(chain, ((name, True) for name in beside), strict=True)]
        facts += [(chain[-1], (childless, True)), (outside, (above_outside, True)), (nobody, (asked, is_negated))]
        facts += [
            (name, (word, random.random() >= NEGATED_ON_CHAIN))
            for name, word in zip(chain[:-1], properties[1:size], strict=True)
        ]
        facts += [
            (name, (word, random.random() >= NEGATED_BESIDE))
            for name, word in zip([*beside, outside], properties[size:], strict=True)
        ]
        sentences = proof + [_write_rule(concept, fact, random) for concept, fact in facts]
        random.shuffle(sentences)
        is_a = [_write_fact(person, (chain[0], True)), _write_fact(person, (outside, True))]
        random.shuffle(is_a)

        statement = (asked, random.random() < 0.5)
        conclusions = [_write_fact(person, (concept, True)) for concept in chain]
        steps = [f"{conclusion} {rule}" for conclusion, rule in zip(conclusions, proof, strict=True)]
        steps.append(_write_fact(person, (asked, not is_negated)))
        question = " ".join([*sentences, *is_a, f"True or false: {_write_fact(person, statement)}"])
        return Example(question, tuple(steps), str(statement[1] != is_negated))

    def solve(self, question: str) -> str:
        return self.solve_in_steps(question).answer

    def solve_in_steps(self, question: str) -> Example:
        """The question with its answer and the shortest proof, by forward chaining over concepts, properties and their
        opposites.

        Raises:
            ValueError: a sentence is of another form, or the facts prove both the statement and its opposite or none.
        """
        text, _, statement = question.partition(" True or false: ")
        asked = _PERSON.fullmatch(statement)
        if not asked:
            raise ValueError(
                f"does not end with a statement such as 'True or false: Max is not red.': {question[-60:]!r}"
            )
        person, wanted = asked[1], (asked[3], not asked[2])
        rules: defaultdict[str, list[tuple[Fact, str]]] = defaultdict(list)
        proofs: dict[Fact, tuple[str, ...]] = {}
        for sentence in re.split(r"(?<=\.) ", text):
            subject, fact = _read_sentence(sentence)
            if subject[0].islower():
                rules[subject].append((fact, sentence))
            elif subject == person:
                proofs[fact] = ()
        agenda = list(proofs)
        for fact in agenda:  # it grows: nearer facts stand before farther ones
            for conclusion, rule in rules[fact[0]] if fact[1] else ():
                if conclusion not in proofs:
                    proofs[conclusion] = (*proofs[fact], f"{_write_fact(person, fact)} {rule}")
                    agenda.append(conclusion)
        opposite = (wanted[0], not wanted[1])
        if (wanted in proofs) == (opposite in proofs):
            found = (
                "both the statement and its opposite follow"
                if wanted in proofs
                else "neither the statement nor its opposite follows"
            )
            raise ValueError(f"{found}: {statement!r}")
        proved = wanted if wanted in proofs else opposite
        return Example(question, (*proofs[proved], _write_fact(person, proved)), str(proved == wanted))


def _read_sentence(sentence: str) -> tuple[str, Fact]:
    """Subject (concepts in lower case, in the singular) and what is said of it."""
    rule = _EACH.fullmatch(sentence) or _PLURAL.fullmatch(sentence)
    found = rule or _PERSON.fullmatch(sentence)
    if not found:
        raise ValueError(
            f"not of the form 'Max is a vumpus.', 'Each vumpus is red.' or 'Vumpuses are not red.': {sentence!r}"
        )
    return found[1].lower() if rule else found[1], (found[3], not found[2])


def _write_rule(concept: str, fact: Fact, random: Random) -> str:
    """ "Each vumpus is an impus.", "Every vumpus is not red." or, in half of the cases, "Vumpuses are impuses."."""
    if random.random() < 0.5:
        word = fact[0] + "es" if fact[0] in CONCEPTS else fact[0]
        return f"{concept.capitalize()}es are {'' if fact[1] else 'not '}{word}."
    return _write_fact(f"{random.choice(('Each', 'Every'))} {concept}", fact)


def _write_fact(subject: str, fact: Fact) -> str:
    """ "Max is a vumpus.", "Max is an impus." or "Max is not red."."""
    word, holds = fact
    article = "" if word not in CONCEPTS else "an " if word[0] in "aeiou" else "a "
    return f"{subject} is {'' if holds else 'not '}{article}{word}."
