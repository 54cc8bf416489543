"""ProntoQA: is it true or false that a person has a property? A chain of rules gives the answer, among distractors.

    Brimpuses are grimpuses. Each vumpus is a brimpus. ... Max is a vumpus. True or false: Max is wooden.
    steps     Max is a vumpus. Each vumpus is a brimpus. / Max is a brimpus. Brimpuses are ... / Max is not wooden.
    answer    False

Source: Saparov and He, arXiv 2210.01240, in the set-up of Hao et al., arXiv 2412.06769: 5 hops, fictional concepts,
sentences in random order, relevant distractors, two sentences of the proof per step. All 10,000 examples of that set-up
have the same skeleton:

- a chain of `num_hops` concepts: the person is the first, each is the next, and the last has the property asked for;
- each concept of the chain is also a concept off the chain, which has a property; the last is one more, without one;
- each concept of the chain except the last has a property of its own;
- the person is also a concept outside the chain, which has a property and is another concept;
- a concept that the person is not has the opposite of the property asked for, so matching words does not help.

Nothing of the chain is needed: the concept that the person is not is named once, the last of the chain three times, so
of the two rules about the property asked for the one whose subject is named more often is right in all 800 released
test questions.

Properties of one family (red, blue) are never in the same example, except the one asked for and its opposite. The
shares of negated properties are measured on those 10,000 examples, and a test compares them; they differ by position
because the original draws again when it gets stuck.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from random import Random

from pydantic import Field

from pretrain.schema.section import Section
from pretrain.tasks.graph_form import GraphForm, Step
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.task import Example, Rule, Size, Task

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
"""Families of mutually exclusive properties."""

NEGATED_ON_CHAIN, NEGATED_ASKED, NEGATED_BESIDE = 0.273, 0.466, 0.328
"""Share of negated properties: on the chain, of its last concept (the property asked for), and off the chain."""

Fact = tuple[str, bool]
"""A concept or property, and whether it is affirmed (True) or negated."""

_EACH = re.compile(r"(?:Each|Every) ([a-z]+pus) is (not )?(?:an? )?([a-z]+)\.")
_PLURAL = re.compile(r"([A-Z][a-z]*pus)es are (not )?([a-z]+?)(?:(?<=pus)es)?\.")
_PERSON = re.compile(r"([A-Z][a-z]+) is (not )?(?:an? )?([a-z]+)\.")


class ProntoQAParameters(Section):
    num_hops: int = Field(default=5, ge=1, le=6)
    """Rules in the proof: num_hops - 1 from concept to concept and one to the property."""


class ProofForm(GraphForm):
    """Max is a vumpus. Each vumpus is a brimpus. / ... / Max is not wooden.

    Nodes are the person, the concepts, and the properties that something has ("wooden") or has not ("not wooden"). The
    target is what the statement or its opposite says, whichever follows. A step is the rule in it; the first one begins
    with what the person is, and the last has no rule.
    """

    first_distance = 1

    def graph(self, question: str) -> Graph:
        text, person, wanted = _read_question(question)
        nodes: dict[str, int] = {}
        edges: list[tuple[int, int]] = []
        for subject, fact in map(_read_sentence, text):
            parent, child = (nodes.setdefault(name, len(nodes)) for name in (subject, _name(fact)))
            edges.append((parent, child))
        root, held, opposite = (
            nodes.setdefault(name, len(nodes)) for name in (person, _name(wanted), _name((wanted[0], not wanted[1])))
        )
        return Graph.asked(tuple(nodes), edges, root, (held, opposite))

    def opening(self, graph: Graph) -> str:
        return f"{graph.idx_to_symbol[graph.root]} is"

    def spelt(self, name: str) -> str:
        word = name.removeprefix("not ")
        return " " + _predicate((word, word == name))

    def sentence(self, graph: Graph, text: str) -> Step | None:
        first, dot, rule = text.partition(". ")
        try:
            (person, known), further = _read_sentence(first + dot.strip()), _read_sentence(rule) if rule else None
        except ValueError:
            return None
        if person != graph.idx_to_symbol[graph.root]:
            return None
        if further is None:
            return Step(None, _name(known))
        subject, fact = further
        return Step(subject, _name(fact)) if (subject, True) == known else None


class ProntoQA(Task[ProntoQAParameters]):
    name = "prontoqa"
    parameters_type = ProntoQAParameters
    graph_form = ProofForm()
    is_prose = True

    @property
    def shortcuts(self) -> dict[str, Rule]:
        return {
            "rule whose subject is named more often": lambda question: _by_a_rule(question, _num_mentions),
            "rule that stands first": lambda question: _by_a_rule(
                question, lambda text, sentence: -text.index(sentence)
            ),
            "false": lambda _: ["False"],
        }

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

    def longest(self, size: Size) -> Example:
        num_hops = self.parameters.num_hops
        concepts = [(concept, True) for concept in CONCEPTS]
        words = [(word, holds) for family in FAMILIES for word in family for holds in (True, False)]
        is_a, is_so = _longest_rule(concepts, size), _longest_rule(words, size)
        person = max(PERSONS, key=lambda name: size(f" {name} is"))
        member, state = (
            max((_write_fact(person, fact) for fact in facts), key=lambda text: size(f" {text}"))
            for facts in (concepts, words)
        )
        rules = [is_a] * (2 * num_hops + 1) + [is_so] * (2 * num_hops + 2)
        steps = [f"{member} {max(is_a, is_so, key=size)}"] * num_hops + [state]
        question = " ".join([*rules, member, member, f"True or false: {state}"])
        return Example(question, tuple(steps), max("True", "False", key=size))

    def solve(self, question: str) -> str:
        return self.solve_in_steps(question).answer

    def solve_in_steps(self, question: str) -> Example:
        """The question with its answer and the shortest proof, found by forward chaining.

        Raises:
            ValueError: a sentence has another form, or the statement and its opposite both follow, or neither does.
        """
        text, person, wanted = _read_question(question)
        rules: defaultdict[str, list[tuple[Fact, str]]] = defaultdict(list)
        proofs: dict[Fact, tuple[str, ...]] = {}
        for sentence in text:
            subject, fact = _read_sentence(sentence)
            if subject[0].islower():
                rules[subject].append((fact, sentence))
            elif subject == person:
                proofs[fact] = ()
        agenda = list(proofs)
        for fact in agenda:  # grows during iteration: breadth first
            for conclusion, rule in rules[fact[0]] if fact[1] else ():
                if conclusion not in proofs:
                    proofs[conclusion] = (*proofs[fact], f"{_write_fact(person, fact)} {rule}")
                    agenda.append(conclusion)
        opposite = (wanted[0], not wanted[1])
        if (wanted in proofs) == (opposite in proofs):
            both, neither = (
                "both the statement and its opposite follow",
                "neither the statement nor its opposite follows",
            )
            verdict = both if wanted in proofs else neither
            raise ValueError(f"{verdict}: {_write_fact(person, wanted)!r}")
        proved = wanted if wanted in proofs else opposite
        return Example(question, (*proofs[proved], _write_fact(person, proved)), str(proved == wanted))


def _read_question(question: str) -> tuple[list[str], str, Fact]:
    """The sentences of a question, the person it is about, and what it says of them.

    Raises:
        ValueError: it has another form.
    """
    text, _, statement = question.partition(" True or false: ")
    asked = _PERSON.fullmatch(statement)
    if not asked:
        form = "'True or false: Max is not red.'"
        raise ValueError(f"does not end with a statement such as {form}: {question[-60:]!r}")
    return re.split(r"(?<=\.) ", text), asked[1], (asked[3], not asked[2])


def _name(fact: Fact) -> str:
    """A node's name: "vumpus", "red", "not red"."""
    return fact[0] if fact[1] else f"not {fact[0]}"


def _by_a_rule(question: str, value: Callable[[str, str], int]) -> list[str]:
    """The answer if, of the two sentences about the property asked for, the one of larger `value` (of all sentences,
    and this one) counts; both answers if they are equal."""
    text, _, statement = question.partition(" True or false: ")
    _, (asked, is_affirmed) = _read_sentence(statement)
    facts = {sentence: _read_sentence(sentence)[1] for sentence in re.split(r"(?<=\.) ", text)}
    about = [sentence for sentence, (word, _) in facts.items() if word == asked]
    most = max(value(text, sentence) for sentence in about)
    return [str(facts[sentence][1] == is_affirmed) for sentence in about if value(text, sentence) == most]


def _num_mentions(text: str, sentence: str) -> int:
    """How often the subject of a sentence is named."""
    subject, _ = _read_sentence(sentence)
    return len(re.findall(rf"\b{subject}(?:es)?\b", text.lower()))


def _read_sentence(sentence: str) -> tuple[str, Fact]:
    """Subject (a concept in lower-case singular, or a person) and the fact stated about it."""
    rule = _EACH.fullmatch(sentence) or _PLURAL.fullmatch(sentence)
    match = rule or _PERSON.fullmatch(sentence)
    if not match:
        forms = "'Max is a vumpus.', 'Each vumpus is red.' or 'Vumpuses are not red.'"
        raise ValueError(f"not of the form {forms}: {sentence!r}")
    return match[1].lower() if rule else match[1], (match[3], not match[2])


def _write_rule(concept: str, fact: Fact, random: Random) -> str:
    """Such as "Each vumpus is an impus.", "Every vumpus is not red." or, half of the time, "Vumpuses are impuses."."""
    if random.random() < 0.5:
        return _write_plural(concept, fact)
    return _write_fact(f"{random.choice(('Each', 'Every'))} {concept}", fact)


def _write_plural(concept: str, fact: Fact) -> str:
    word = fact[0] + "es" if fact[0] in CONCEPTS else fact[0]
    return f"{concept.capitalize()}es are {'' if fact[1] else 'not '}{word}."


def _longest_rule(facts: Iterable[Fact], size: Size) -> str:
    """The rule of most tokens about any concept and one of the facts: the words of the two do not touch, so the longest
    of each make the longest rule of a form."""
    facts = list(facts)
    longest = []
    for form in ("Each {}", "Every {}", ""):

        def write(concept: str, fact: Fact, form: str = form) -> str:
            return _write_fact(form.format(concept), fact) if form else _write_plural(concept, fact)

        fact = max(facts, key=lambda fact, write=write: size(f" {write(CONCEPTS[0], fact)}"))
        longest += [write(concept, fact) for concept in CONCEPTS]
    return max(longest, key=lambda rule: size(f" {rule}"))


def _write_fact(subject: str, fact: Fact) -> str:
    """Such as "Max is a vumpus.", "Max is an impus." or "Max is not red."."""
    return f"{subject} is {_predicate(fact)}."


def _predicate(fact: Fact) -> str:
    """Such as "a vumpus", "an impus" or "not red"."""
    word, holds = fact
    article = "" if word not in CONCEPTS else "an " if word[0] in "aeiou" else "a "
    return f"{'' if holds else 'not '}{article}{word}"
