"""Our tasks in the harness: a model that knows scores 1, one that does not scores 0, and questions follow from the seed
alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from pretrain.eval.groups import ResolvedTask, resolve
from pretrain.eval.loading import load_tasks
from pretrain.eval.own_tasks import SHOT_END, harness_task
from pretrain.tasks.registry import TASKS, make_task
from pretrain.tasks.task import Example, Task

SMALL: dict[str, dict[str, object]] = {
    "variable_assignment": {"depth": 1, "wording": "code"},
    "multiplication": {},
    "p_hop": {},
    "induction_copying": {},
}


class Scripted(LM):
    """Answers the last question of a prompt by a function of it."""

    tokenizer = None

    def __init__(self, answer: Callable[[str], str]) -> None:
        super().__init__()
        self.answer = answer
        self.prompts: list[str] = []

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        said = []
        for prompt, settings in (request.args for request in requests):
            self.prompts.append(prompt)
            text = self.answer(prompt) + SHOT_END + "Next question"
            for stop in settings["until"]:
                text = text.partition(stop)[0]
            said.append(text.encode()[: settings["max_gen_toks"]].decode())  # a byte a token
        return said

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [
            (-1.0, self.answer(prompt) == continuation)
            for prompt, continuation in (request.args for request in requests)
        ]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def question_of(task: Task[Any], prompt: str) -> str:
    last = prompt.rpartition(SHOT_END)[2]
    return last.removesuffix(task.question_end)


def knows(task: Task[Any], *, steps: bool = False) -> Callable[[str], str]:
    def answer(prompt: str) -> str:
        solved = task.solve(question_of(task, prompt))
        return ("a step" + task.step_end if steps else "") + task.answer_start + solved

    return answer


def score(task: Any, model: Scripted) -> dict[str, Any]:
    # Not simple_evaluate, which spends seconds on a description of the machine.
    task.set_fewshot_seed(seed=1)
    results: Any = evaluate(lm=model, task_dict=TaskManager(include_defaults=False).load([task]), bootstrap_iters=0)
    return results["results"][task.task_name]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("match", ["generation", "likelihood"])
@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_who_knows_scores_1_and_who_does_not_0(name: str, match: Any, num_fewshot: int) -> None:
    task = make_task(name, SMALL[name])
    metric = {"generation": "exact_match,none", "likelihood": "acc,none"}[match]
    asked = harness_task(task, name="asked", num_examples=12, num_fewshot=num_fewshot, match=match)
    assert score(asked, Scripted(knows(task)))[metric] == 1
    assert score(asked, Scripted(lambda prompt: task.answer_start + "none"))[metric] == 0


def test_steps_are_shown_and_passed_over() -> None:
    task = make_task("variable_assignment", {"depth": 2})
    asked = harness_task(task, name="asked", num_examples=9, num_fewshot=3, with_steps=True)
    model = Scripted(knows(task, steps=True))
    assert score(asked, model)["exact_match,none"] == 1
    for prompt in model.prompts:
        shots = prompt.split(SHOT_END)[:-1]
        assert len(shots) == 3
        assert all(len(shot.split("\n")) == 5 and task.answer_start in shot for shot in shots)


@pytest.mark.parametrize("name", SMALL)
def test_prompt_is_the_text_of_training(name: str) -> None:
    task = make_task(name, SMALL[name])
    asked = harness_task(task, name="asked", num_examples=3, seed=4)
    for number, document in enumerate(asked.eval_docs):
        example = task.pick("test", 4, number)
        (request,) = [asked.construct_requests(document, asked.fewshot_context(document, num_fewshot=0))]
        pieces = task.render(example, with_steps=False)
        assert request.args[0] + asked.doc_to_target(document) == "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("answer", "with_steps", "sign"),
    [("a ### b", False, "'### '"), ("a\nb", False, "'\\\\n'"), ("a\n\nb", True, "'\\\\n\\\\n'")],
)
def test_an_answer_that_could_not_be_given_is_refused(answer: str, with_steps: bool, sign: str) -> None:
    """Of a file of questions: the model would be scored 0 whatever it writes."""
    ask = partial(harness_task, make_task("prosqa", {}), name="prosqa", num_examples=1, with_steps=with_steps)
    ask(questions=[Example("Q?", ("s",), "a b")])
    with pytest.raises(ValueError, match=rf"example 1: its answer .* holds {sign}, .*: no given answer could equal it"):
        ask(questions=[Example("Q?", ("s",), "a b"), Example("Q?", ("s",), answer)])


def test_questions_follow_from_the_seed_and_shots_are_for_training() -> None:
    task = make_task("variable_assignment", {})

    def questions(seed: int) -> list[str]:
        return harness_task(task, name="asked", num_examples=20, seed=seed).eval_docs["question"][:]

    assert questions(1) == questions(1) != questions(2)
    asked = harness_task(task, name="asked", num_examples=20)
    for documents, split in ((asked.eval_docs, "test"), (asked.fewshot_docs(), "train")):
        made = [Example(text.removesuffix(task.question_end), (), "") for text in documents["question"]]
        assert {task.split_of(example) for example in made} == {split}


def test_what_cannot_be_scored_is_refused() -> None:
    marked, unmarked = make_task("variable_assignment", {}), make_task("p_hop", {})
    with pytest.raises(ValueError, match="no mark before the answer"):
        harness_task(unmarked, name="asked", num_examples=1, with_steps=True)
    with pytest.raises(ValueError, match="likelihood scores the answer alone"):
        harness_task(marked, name="asked", num_examples=1, with_steps=True, match="likelihood")
    (resolved,) = resolve(["multiplication"], None, allow_network=False)
    assert isinstance(resolved, ResolvedTask)
    with pytest.raises(ValueError, match="num_examples=0"):
        load_tasks(resolved, None, num_examples=0)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_at_its_default_difficulty_becomes_one(name: str) -> None:
    asked = harness_task(make_task(name, {}), name=name, num_examples=2, num_fewshot=2)
    assert len(asked.eval_docs) == 2
    assert asked.fewshot_context(asked.eval_docs[0], num_fewshot=2).count(SHOT_END) >= 2
