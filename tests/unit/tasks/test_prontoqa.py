"""ProntoQA: the solver judges the generator and the released files, and generated examples have the skeleton of the
released ones."""

import gzip
import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.tasks.example_file import read_examples
from pretrain.tasks.prosqa.prontoqa import CONCEPTS, FAMILIES, ProntoQA, ProntoQAParameters
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example
from tests.support.example_files import write_examples

RELEASED = Path(__file__).parents[3].parent / "shared/data/prontoqa"
FILES = {"prontoqa_train.json.gz": 9000, "prontoqa_valid.json.gz": 200, "prontoqa_test.json.gz": 800}
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason=f"the released files are not in {RELEASED}")

TASK = ProntoQA(ProntoQAParameters())
FAMILY_OF = {word: family for family in FAMILIES for word in family}
TINY = "Vumpuses are impuses. Each impus is not red. Dumpuses are red. Max is a vumpus. True or false: Max is red."


def test_the_solver_and_the_generator_agree() -> None:
    for number in range(3000):
        example = TASK.generate(7, number)
        assert TASK.solve_in_steps(example.question) == example


@given(st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_any_number_of_hops(num_hops: int, seed: int) -> None:
    example = make_task("prontoqa", {"num_hops": num_hops}).generate(seed, 0)
    assert TASK.solve_in_steps(example.question) == example
    assert len(example.steps) == num_hops + 1
    assert len(sentences(example.question)) == 4 * num_hops + 6


def test_negation_decides_and_words_do_not() -> None:
    assert TASK.solve_in_steps(TINY) == Example(
        TINY,
        ("Max is a vumpus. Vumpuses are impuses.", "Max is an impus. Each impus is not red.", "Max is not red."),
        "False",
    )
    assert TASK.solve(TINY.replace("false: Max is red", "false: Max is not red")) == "True"
    assert TASK.solve(TINY.replace("is not red", "is red")) == "True"


def test_what_something_is_not_leads_nowhere() -> None:
    question = (
        "Vumpuses are not impuses. Each impus is red. Vumpuses are not red. Max is a vumpus. True or false: Max is red."
    )
    assert TASK.solve(question) == "False"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Each impus", "No impus", r"not of the form .*: 'No impus is not red\.'"),
        ("True or false: Max is red.", "Is Max red?", "does not end with a statement"),
        ("Max is a vumpus", "Sam is a vumpus", "neither the statement nor its opposite follows"),
        ("Dumpuses are red", "Vumpuses are red", "both the statement and its opposite follow"),
    ],
)
def test_a_text_that_is_no_question_is_refused(old: str, new: str, reason: str) -> None:
    assert old in TINY
    with pytest.raises(ValueError, match=reason):
        TASK.solve(TINY.replace(old, new))


def test_examples_are_a_function_of_seed_and_number() -> None:
    again = ProntoQA(ProntoQAParameters())
    assert [again.generate(1, number) for number in (5, 3)] == [TASK.generate(1, number) for number in (5, 3)]
    assert len({TASK.generate(seed, number).question for seed in range(3) for number in range(20)}) == 60
    digest = hashlib.blake2b(
        repr([TASK.generate(1, number) for number in range(20)]).encode(), digest_size=8
    ).hexdigest()
    assert digest == "ca53a9acfed8aaa5"  # in every process, whatever its hash seed


def test_picked_examples_are_in_their_split() -> None:
    for split in ("train", "validation", "test"):
        for number in range(10):
            example = TASK.pick(split, 0, number)
            assert TASK.split_of(example) == split
            assert TASK.solve(example.question) == example.answer


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    examples = [TASK.generate(0, number) for number in range(20)]
    for name in ("examples.json", "examples.json.gz"):
        write_examples(tmp_path / name, examples)
        assert read_examples(tmp_path / name) == examples


@needs_released
@pytest.mark.parametrize("name", FILES)
def test_the_solver_is_right_on_every_released_example(name: str) -> None:
    examples = read_examples(RELEASED / name)
    assert len(examples) == FILES[name]
    for example in examples:
        assert TASK.solve_in_steps(example.question) == example


@needs_released
def test_the_solver_is_right_on_the_examples_of_another_project() -> None:
    rows = json.loads(gzip.decompress((RELEASED / "logic_llm_dev.json.gz").read_bytes()))
    assert len(rows) == 500
    for row in rows:
        statement = row["question"].removeprefix("Is the following statement true or false? ")
        solved = TASK.solve_in_steps(f"{row['context']} True or false: {statement}")
        assert solved.answer == {"A": "True", "B": "False"}[row["answer"]]
        assert sentences(" ".join(solved.steps)) == row["explanation"]


@needs_released
def test_generated_examples_are_like_the_released_ones() -> None:
    """The same skeletons, and every choice as often: within 4 standard errors, which one seed in 100 would miss."""
    theirs = [example for name in FILES for example in read_examples(RELEASED / name)]
    ours = [TASK.generate(0, number) for number in range(5000)]
    skeletons, counts = zip(*(count_choices(some) for some in (ours, theirs)), strict=True)
    assert len(skeletons[0]) == 1
    assert skeletons[0] == skeletons[1]
    assert counts[0].keys() == counts[1].keys()
    for choice in counts[0]:
        shares = [count[choice] / len(some) for count, some in zip(counts, (ours, theirs), strict=True)]
        # A choice is made up to 22 times in an example: Poisson's variance is an upper bound.
        error = math.sqrt(shares[1] * (1 / len(ours) + 1 / len(theirs)))
        assert abs(shares[0] - shares[1]) < 4 * error, (
            f"{choice}: {shares[0]:.3f} against {shares[1]:.3f} ± {error:.3f}"
        )


def count_choices(examples: list[Example]) -> tuple[set[tuple[tuple[str, str], ...]], Counter[str]]:
    skeletons, counts = set(), Counter[str]()
    for example in examples:
        skeleton, choices = skeleton_and_choices(example)
        skeletons.add(skeleton)
        counts.update(choices)
    return skeletons, counts


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def read_rules(example: Example) -> list[tuple[str, str, bool, str]]:
    """(concept, its quantifier, whether it is negated, concept or property) of every rule, a second reading of the
    text."""
    rules = []
    for sentence in sentences(example.question.split(" True or false: ")[0])[:-2]:
        words = sentence.rstrip(".").split()
        quantifier = words.pop(0) if words[0] in ("Each", "Every") else "plural"
        subject, last = (
            word.lower().removesuffix("es") if word.lower().endswith("puses") else word
            for word in (words[0], words[-1])
        )
        rules.append((subject, quantifier, "not" in words, last))
    return rules


def places(rules: list[tuple[str, str, bool, str]], chain: list[str], stated: list[str]) -> dict[str, str]:
    """Each concept's place: chain0, chain1, ..., beside (the chain), outside (the other that is stated), above (the
    outside), nobody."""
    (outside,) = set(stated) - {chain[0]}
    place = {concept: f"chain{number}" for number, concept in enumerate(chain)} | {outside: "outside"}
    for subject, _, _, said in rules:
        if said in CONCEPTS and said not in place:
            place[said] = "above" if subject == outside else "beside"
    return place | {subject: "nobody" for subject, *_ in rules if subject not in place}


def skeleton_and_choices(example: Example) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """What is said of which place, without names, order and negation; and everything that is drawn, by name."""
    rules = read_rules(example)
    asked = example.steps[-1].split()[-1].rstrip(".")
    stated = [
        sentence.split()[-1].rstrip(".") for sentence in sentences(example.question.split(" True or false: ")[0])[-2:]
    ]
    place = places(rules, [step.split()[3].rstrip(".") for step in example.steps[:-1]], stated)
    said_of = sorted(
        (place[subject], place.get(said, "asked" if said == asked else "property")) for subject, _, _, said in rules
    )

    choices = [f"answer {example.answer}", f"statement negated {'not' in example.question.split()[-2:]}"]
    choices += [f"person {example.steps[0].split()[0]}", f"first statement {place[stated[0]]}"]
    choices += [f"concept {concept}" for concept in place]
    for number, (subject, quantifier, is_negated, said) in enumerate(rules):
        kind = "concept" if said in CONCEPTS else "property"
        choices += [f"quantifier {quantifier} of {kind}", f"first fifth {place[subject]} {number < 5}"]
        if kind == "property":
            choices += [f"negated {place[subject]} {is_negated}", f"property {said}"]
    families = {FAMILY_OF[said] for *_, said in rules if said in FAMILY_OF}
    return tuple(said_of), choices + [f"family {family[0]}" for family in families]
