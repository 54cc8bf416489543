"""Tasks of `pretrain.tasks` in the evaluation harness: test examples made from a seed, shots from the train split,
exact match.

The prompt is the text that training uses: question, then (steps and) the answer with its mark, without a delimiter of
the harness's. Shots are separated by an empty line. The answer is matched in one of two ways:

- generation: what follows the last mark is the answer, to the letter; the only way if the model writes its steps first.
- likelihood: whether the answer is what greedy decoding would say. One pass for all loop counts, but an answer that
  would continue ("51" for "5") counts as right, so it suits answers of one symbol or of fixed length.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from pretrain.tasks.task import Example, Task

SHOT_END = "\n\n"
SHOT_POOL = 64
"""Training examples that the shots of each question are drawn from."""
SPARE_TOKENS = 1
"""Tokens beyond the bytes of the longest right answer, to see that it ends. More could cut the prompt of a model whose
sequences just hold both."""


def harness_task(
    task: Task[Any],
    *,
    name: str,
    num_examples: int,
    num_fewshot: int = 0,
    seed: int = 0,
    match: Literal["generation", "likelihood"] = "generation",
    with_steps: bool = False,
    questions: Sequence[Example] | None = None,
) -> ConfigurableTask:
    """A task at its difficulty, as the harness runs it; its metric is `exact_match`, or `acc` by likelihood.

    Args:
        task: what to ask.
        name: of the task in results.
        num_examples: questions of the test split, no problem twice; they follow from `seed` alone. Fewer if there are
            not so many problems.
        num_fewshot: solved examples before each question; the harness may override it.
        seed: of the examples.
        match: how an answer is matched, see the top of this file.
        with_steps: shots show their steps, and the model writes its own before the answer.
        questions: all that is asked, instead of questions that are made.

    Raises:
        ValueError: steps were asked for but cannot be told from the answer, an answer could not be given, or the task
            has too few questions.
    """
    if num_examples < 1:
        raise ValueError(f"task {name}: num_examples={num_examples}, at least 1 is needed")
    if with_steps and (match == "likelihood" or not task.answer_start):
        why = "likelihood scores the answer alone" if task.answer_start else "it has no mark before the answer"
        raise ValueError(
            f"task {name}: cannot be scored with steps: {why}; use match='generation' with a marked answer, or no steps"
        )
    asked = list(task.pick_distinct("test", seed, num_examples)) if questions is None else questions
    splits = {
        "train": _examples(
            task, [task.pick("train", seed, shot) for shot in range(SHOT_POOL + num_fewshot)], with_steps
        ),
        "test": _examples(task, asked, with_steps),
    }
    config: dict[str, Any] = {
        "task": name, "custom_dataset": lambda **_: splits,
        "training_split": "train", "fewshot_split": "train", "test_split": "test",
        "doc_to_text": "question", "doc_to_target": "target", "target_delimiter": "",
        "fewshot_delimiter": SHOT_END, "num_fewshot": num_fewshot,
        "metadata": {"version": 1.0, "parameters": task.parameters.model_dump(), "seed": seed},
    }  # fmt: skip
    match match:
        case "generation":
            config |= _by_generation(task, splits, with_steps)
        case "likelihood":
            metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
            config |= {"output_type": "loglikelihood", "metric_list": [metric]}
        case _:
            assert_never(match)
    return ConfigurableTask(config=config)


def _by_generation(task: Task[Any], splits: Mapping[str, Dataset], with_steps: bool) -> dict[str, Any]:
    def score(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
        said = results[0].rpartition(task.answer_start)[2] if task.answer_start else results[0]
        return {"exact_match": float(said.strip() == document["answer"].strip())}

    longest = max(len(target.encode()) for target in splits["test"]["target"])
    # steps may have lines of their own
    until = [SHOT_END if with_steps else "\n"]
    for number, answer in enumerate(splits["test"]["answer"]):
        for sign, what in ((task.answer_start, "after which an answer is read"), (until[0], "at which writing ends")):
            if sign and sign in answer:
                raise ValueError(
                    f"example {number}: its answer {answer[:60]!r} holds {sign!r}, {what}: no given answer could equal "
                    "it"
                )
    return {
        "output_type": "generate_until",
        "generation_kwargs": {"until": until, "do_sample": False, "max_gen_toks": longest + SPARE_TOKENS},
        "process_results": score,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _examples(task: Task[Any], examples: Sequence[Example], with_steps: bool) -> Dataset:
    rows = []
    for example in examples:
        question, *rest = task.render(example, with_steps=with_steps)
        target = "".join(span.text for span in rest)
        rows.append({"question": question.text, "target": target, "answer": example.answer})
    return Dataset.from_list(rows)
