"""No configured size of a task is solved by a shortcut, except those that are named here."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from finetune.config import FinetuneConfig
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.eval.groups import TASKS as PAPER_TASKS
from pretrain.eval.groups import ResolvedTask, tasks_of
from pretrain.tasks.example_file import read_examples
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.prosqa.prosqa_symbolic import parse_graph
from pretrain.tasks.registry import TASKS, make_task
from pretrain.tasks.shortcuts import MOST_COMMON, best_shortcut, floor_of, score_rules
from pretrain.tasks.task import Example
from tests.support.shipped import schema_of

ROOT = Path(__file__).parents[3]
RELEASED = ROOT.parent / "shared/data"
Size = tuple[str, dict[str, Any]]
"""A task and its parameters."""
LESSONS = {"prosqa_roots_small", "p_hop_rooted_small"}
"""Files whose shorter chains are on the way to longer ones: of these sizes nothing is claimed."""
HARD = {"prosqa_hard": 2500, "prosqa_hard_small": 1500}
"""Files without any shortcut, and questions to see that by: a small graph takes many draws."""


def configured_sizes() -> Iterator[tuple[str, Size]]:
    """Every task that a shipped file trains or scores, with the name of the first file."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        if path.parent.name == "finetune":
            data = read_config(path, schema_of(path)).data
            sizes = [(data.test.task, data.test.parameters)]
        elif path.parent.name != "sweeps":
            sources = read_config(path, RunConfig).data.sources
            sizes = [(source.task, source.parameters) for source in sources]
        else:
            continue
        for name, parameters in sizes:
            if (
                name is not None
                and path.stem not in {*HARD, *LESSONS}
                and found.setdefault(f"{name} {sorted(parameters.items())}", path.stem) == path.stem
            ):
                yield path.stem, (name, dict(parameters))
    for name, known in PAPER_TASKS.items():
        if known.generator is not None:
            yield name, (known.generator, dict(known.parameters))


BOUNDS = {
    "addition": 0.08, "p_hop": 0.40, "i_gsm": 0.40, "variable_assignment": 0.25, "induction_copying": 0.25,
    "group_composition": 0.05, "group_product": 0.38, "multiplication": 0.02, "prosqa": 0.94,
    "prosqa_symbolic": 0.94, "prosqa_roots": 0.60, "prontoqa": 1.0,
}  # fmt: skip
"""The most that a shortcut may reach in 500 questions: one standard error is 2.2 points. ProsQA and ProntoQA have
theirs by nature: as released."""


@pytest.mark.parametrize(
    ("where", "size"), [pytest.param(where, size, id=f"{where}-{size[0]}") for where, size in configured_sizes()]
)
def test_no_configured_size_is_solved_by_a_shortcut(where: str, size: Size) -> None:
    best = best_shortcut(*size)
    assert best.accuracy <= BOUNDS[size[0]], (where, best)
    assert best_shortcut(*size) is best


def test_no_shortcut_solves_the_hops_that_are_asked_beyond_those_that_were_trained() -> None:
    """Nor does the answer of fewer hops: it is another symbol, which may be the right one by chance."""
    config = read_config(ROOT / "configs/tasks/p_hop_rooted_small.yaml", RunConfig)
    trained = tasks_of(SavedModel.of(config), [], None)
    asked = tasks_of(SavedModel.of(config), config.validation.tasks, None)
    deeper = [task for task in asked if isinstance(task, ResolvedTask) and task not in trained]
    assert len(deeper) == 3
    for task in deeper:
        hops = task.parameters["num_hops"]
        assert isinstance(hops, int) and hops > 2
        made = make_task("p_hop", task.parameters)
        examples = [made.generate(0, number) for number in range(500)]
        scores = score_rules(made, examples, examples[:100])
        assert {"one hop", *(f"{fewer} hops" for fewer in range(2, hops))} <= set(scores)
        assert max(scores.values()) < 0.45, scores
        assert scores["2 hops"] < 0.30, "what a model that does not go on answers"


def test_every_task_states_its_shortcuts() -> None:
    assert set(BOUNDS) == set(TASKS)
    for name, task in TASKS.items():
        made = make_task(name, {})
        rules = made.shortcuts
        assert rules and MOST_COMMON not in rules, name
        example = made.generate(0, 0)
        assert all(isinstance(answer, str) for rule in rules.values() for answer in rule(example.question)), task


@pytest.mark.parametrize(("file", "num_examples"), HARD.items())
def test_every_shortcut_of_the_hard_prosqa_is_a_coin(file: str, num_examples: int) -> None:
    """Within 2 points; one standard error is 1.0 to 1.3 for rules that never tie."""
    config = read_config(ROOT / f"configs/finetune/{file}.yaml", FinetuneConfig)
    task = make_task(config.data.test.task or "", config.data.test.parameters)
    examples = [task.generate(0, number) for number in range(num_examples)]
    scores = score_rules(task, examples, examples[:100])
    del scores[MOST_COMMON]
    assert len(scores) >= 8
    assert all(abs(score - 0.5) < 0.02 for score in scores.values()), scores


def test_a_walk_at_random_answers_as_much_of_the_small_hard_prosqa_as_the_documents_say() -> None:
    config = read_config(ROOT / "configs/finetune/prosqa_hard_small.yaml", FinetuneConfig)
    task = make_task(config.data.test.task or "", config.data.test.parameters)

    def reaches(graph: Graph, node: int) -> float:
        """Probability that a walk along edges at random, to its end, ends in the target."""
        found = [reaches(graph, child) for child in graph.children[node]]
        return fmean(found) if found else float(node == graph.target)

    graphs = [parse_graph(task.generate(0, number).question) for number in range(600)]
    arrives = fmean(reaches(graph, graph.root) for graph in graphs)
    assert arrives + (1 - arrives) / 2 == pytest.approx(0.74, abs=0.03)  # one standard error is 0.007


@pytest.mark.skipif(not RELEASED.is_dir(), reason=f"the released files are not in {RELEASED}")
@pytest.mark.parametrize(
    ("task", "files", "rule", "accuracy"),
    [
        ("prosqa", ["prosqa/prosqa_test.json.gz", "prosqa/prosqa_valid.json.gz"], "farther from any person", 0.916),
        ("prosqa", ["prosqa/prosqa_test.json.gz", "prosqa/prosqa_valid.json.gz"], "no child of a person", 0.597),
        ("prontoqa", ["prontoqa/prontoqa_test.json.gz"], "rule whose subject is named more often", 1.0),
    ],
)
def test_released_questions_have_the_shortcuts_that_the_documents_name(
    task: str, files: list[str], rule: str, accuracy: float
) -> None:
    examples = [example for file in files for example in read_examples(RELEASED / file)]
    assert score_rules(make_task(task, {}), examples, examples)[rule] == pytest.approx(accuracy, abs=0.0005)


@pytest.mark.parametrize(
    ("task", "parameters", "chance"),
    [
        ("prosqa", {"num_nodes": 12, "min_hops": 2, "max_hops": 3}, 0.5),
        ("prosqa_symbolic", {"num_nodes": 12, "min_hops": 2, "max_hops": 3}, 0.5),
        ("p_hop", {"num_hops": 4, "length": 64}, 0.25),
        ("group_composition", {"order": 5, "num_elements": 8}, 1 / 60),
        ("i_gsm", {}, 1 / 7),
    ],
)
def test_chance_is_one_of_the_options_or_the_answer_to_another_question(
    task: str, parameters: dict[str, object], chance: float
) -> None:
    floor = floor_of(task, parameters)
    assert floor.chance == pytest.approx(chance, abs=0.01)
    assert floor.shortcut == best_shortcut(task, parameters).accuracy
    made = make_task(task, parameters)
    examples = [made.generate(7, number) for number in range(20)]
    asked = [made.options(example.question) for example in examples]
    assert all(len(options) == 2 == len(set(options)) for options in asked) or not any(asked)
    assert all(example.answer in options for example, options in zip(examples, asked, strict=True) if options)
    assert floor_of(None, {}) == (None, None), "of no task"


def test_answers_that_a_rule_cannot_tell_apart_count_by_their_share() -> None:
    task = make_task("p_hop", {"num_hops": 1, "length": 4, "sampling": "uniform"})
    examples = [Example("abab", (), "b"), Example("aaba", (), "b")]  # "ab" as often, then "a" alone
    scores = score_rules(task, examples, [Example("", (), "b"), Example("", (), "c")])
    assert scores["most common symbol"] == 0.25
    assert scores[MOST_COMMON] == 0.5
    assert scores["last symbol"] == 0.5
