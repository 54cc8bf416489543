"""Offline tasks: they load from made and from real files, ask and score as the harness's own do, and name what is
missing or malformed."""

import json
import math
import random
import re
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.squadv2.task import SQuAD2

from pretrain.eval.groups import GROUPS, TASKS, ResolvedTask, SkippedTask, resolve
from pretrain.eval.loading import load_tasks
from pretrain.eval.managers import OFFLINE_FOLDER
from pretrain.eval.tasks import squad, word_problem
from pretrain.eval.tasks.documents import FORMS
from pretrain.eval.tasks.files import Record, read_rows
from tests.support.eval_data import ROWS, write_eval_data

REAL_DATA = Path(__file__).parents[4] / "shared" / "data"
HARNESS = Path(lm_eval.tasks.__file__).parent

OFFLINE = [name for name, task in TASKS.items() if task.offline]
EQUALS = {
    "triviaqa": "triviaqa/default.yaml",
    "nq_open": "nq_open/nq_open.yaml",
    "webqs": "webqs/webqs.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "winogrande": "winogrande/default.yaml",
}
"""The harness's definition that each offline task equals."""

REAL_COUNTS = {
    "triviaqa": 3000, "nq_open": 3610, "webqs": 2032, "squadv2": 6078, "svamp": 1000, "mawps_addsub": 395,
    "mawps_multiarith": 600, "mawps_singleeq": 508, "mawps_singleop": 562, "gsm8k": 1319, "lambada_openai": 5153,
    "hellaswag": 1000, "piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172, "boolq": 3270, "winogrande": 1267,
    "wikitext": 62,
}  # fmt: skip


@pytest.fixture(scope="module")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_data(tmp_path_factory.mktemp("eval_data"))


@pytest.fixture(params=["made", "real"])
def data_dir(request: pytest.FixtureRequest, made_data: Path) -> Path:
    if request.param == "made":
        return made_data
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data in {REAL_DATA}")
    return REAL_DATA


@cache
def load(name: str, data_dir: Path) -> Any:
    (resolved,) = resolve([name], data_dir, allow_network=False)
    assert isinstance(resolved, ResolvedTask), resolved
    (task,) = load_tasks(resolved, data_dir)
    return task


def prompt(task: Any, document: Any, shots: int) -> Any:
    task.set_fewshot_seed(seed=1)
    return task.fewshot_context(document, num_fewshot=shots)


def requests(task: Any, document: Any, context: Any) -> list[Any]:
    made = task.construct_requests(document, context, metadata=("task", 0, 1))
    return [(one.request_type, one.arguments) for one in (made if isinstance(made, list) else [made])]


@pytest.mark.parametrize("name", OFFLINE)
def test_loads(name: str, data_dir: Path) -> None:
    task = load(name, data_dir)
    made_count = 2 * ROWS if name == "squadv2" else ROWS
    assert len(task.eval_docs) == (REAL_COUNTS[name] if data_dir == REAL_DATA else made_count)
    first = task.eval_docs[0]
    print(f"{name}: {prompt(task, first, 1)!r} -> {task.doc_to_target(first)!r}")
    assert TASKS[name].num_fewshot in (None, task.config.num_fewshot)
    # What is asked is never among its own shots: with all others as shots, each question is there once.
    if task.config.fewshot_split == "test" and data_dir != REAL_DATA and name != "squadv2":
        context = prompt(task, first, ROWS - 1)
        assert context.count(task.doc_to_text(first)) == 1


def harness_twin(name: str, task: Any, data_dir: Path) -> Any:
    """The harness's own task of that name over the documents of ours."""
    config = load_yaml(HARNESS / EQUALS[name])
    evaluated, shots = task.eval_docs, task.fewshot_docs()
    if name == "hellaswag" and data_dir != REAL_DATA:
        # Its own processing of the original rows.
        evaluated = shots = Dataset.from_list(
            [row.fields for row in read_rows(next((data_dir / "hellaswag").iterdir()))]
        )
    elif name == "hellaswag":
        config.pop("process_docs")
    splits = {"train": shots, "validation": evaluated, "test": evaluated}
    for key in ("dataset_path", "dataset_name", "tag"):
        config.pop(key, None)
    # Where the harness excludes what is asked from the shots, it looks at the test split alone.
    same = (
        {"fewshot_split": "test", "test_split": "test"}
        if task.config.fewshot_split == "test"
        else {"fewshot_split": "train"}
    )
    return ConfigurableTask(config={**config, **same, "custom_dataset": lambda **_: splits, "metadata": {"version": 0}})


@pytest.mark.parametrize("name", EQUALS)
def test_equals_the_harness(name: str, data_dir: Path) -> None:
    ours = load(name, data_dir)
    theirs = harness_twin(name, ours, data_dir)
    assert ours.OUTPUT_TYPE == theirs.OUTPUT_TYPE
    assert set(ours.aggregation()) == set(theirs.aggregation())
    assert all(ours.aggregation()[key] is theirs.aggregation()[key] for key in ours.aggregation())
    assert ours.higher_is_better() == theirs.higher_is_better()
    assert filters(ours) == filters(theirs)
    assert ours._metric_fn_kwargs == theirs._metric_fn_kwargs
    assert (ours.config.num_fewshot or 0) in ((theirs.config.num_fewshot or 0), TASKS[name].num_fewshot)
    dice = random.Random(name)
    documents = list(zip(ours.eval_docs, theirs.eval_docs, strict=True))
    for our_document, their_document in documents if len(documents) <= ROWS else dice.sample(documents, ROWS):
        assert ours.doc_to_target(our_document) == theirs.doc_to_target(their_document)
        if ours.config.doc_to_choice is not None:
            assert ours.doc_to_choice(our_document) == theirs.doc_to_choice(their_document)
        # The harness's own webqs cannot be given shots.
        for shots in (0, 3) if name != "webqs" else (0,):
            context = prompt(ours, our_document, shots)
            assert context == prompt(theirs, their_document, shots)
            assert requests(ours, our_document, context) == requests(theirs, their_document, context)
        asked = requests(ours, our_document, context)
        for results in answers(ours, our_document, asked, dice):
            assert ours.process_results(our_document, results) == theirs.process_results(their_document, results)


def filters(task: Any) -> list[tuple[str, list[tuple[type, dict[str, Any]]]]]:
    """What is done to an answer before it is scored: by name, the kinds of filters and their settings."""
    return [
        (each.name, [(type(one), vars(one)) for one in (make() for make in each.filters)]) for each in task._filters
    ]


def answers(task: Any, document: Any, asked: list[Any], dice: random.Random) -> list[list[Any]]:
    """A few possible results of the requests of a document."""
    if task.OUTPUT_TYPE != "generate_until":
        return [[(-dice.random() * 9, dice.random() < 0.5) for _ in asked] for _ in range(4)]
    target = task.doc_to_target(document)
    right = target[-1] if isinstance(target, list) else target
    said = ["lol", "", right, f"The {right}", right.upper()]
    made = [[one] for one in said]
    # Through each chain of filters, as the harness does.
    return made + [next(iter(each.filters[0]().apply([made[3]], [document]))) for each in task._filters]


def test_wikitext_equals_the_harness(data_dir: Path) -> None:
    ours = load("wikitext", data_dir)
    config = load_yaml(HARNESS / "wikitext/wikitext.yaml")
    for key in ("dataset_path", "dataset_name", "training_split", "validation_split"):
        config.pop(key)
    theirs = ConfigurableTask(config={**config, "custom_dataset": lambda **_: {"test": ours.eval_docs}})
    assert ours.OUTPUT_TYPE == theirs.OUTPUT_TYPE
    assert {name: kind.__name__ for name, kind in ours.aggregation().items()} == {
        name: kind.__name__ for name, kind in theirs.aggregation().items()
    }
    for document in ours.eval_docs:
        assert document["page"].lstrip().startswith("= ")
        assert requests(ours, document, "") == requests(theirs, document, "")
        assert ours.process_results(document, [-7.0]) == theirs.process_results(document, [-7.0])
    whole = "".join(document["page"] for document in ours.eval_docs)
    (row,) = read_rows(next((data_dir / "wikitext2").glob("test.txt*")))
    assert row.text("text").strip() == whole.strip()


@pytest.mark.parametrize("name", ["squadv2"])
def test_squad_equals_the_harness(name: str, data_dir: Path) -> None:
    ours = load(name, data_dir)
    theirs: Any = object.__new__(SQuAD2)  # making one would fetch its data
    assert set(ours.aggregation()) == set(theirs.aggregation())
    assert ours.higher_is_better() == theirs.higher_is_better()
    for document in ours.eval_docs.select(range(2 * ROWS)):
        assert ours.doc_to_text(document) == theirs.doc_to_text(document)
        assert ours.doc_to_target(document) == theirs.doc_to_target(document).removeprefix(" ")
        assert requests(ours, document, "context") == requests(theirs, document, "context")


def test_squad_scores() -> None:
    assert squad.exact("The  house!", "house") == 1
    assert squad.exact("houses", "house") == 0
    assert squad.f1("in the old house", "old house") == pytest.approx(0.8)
    assert squad.f1("the", "") == 1
    assert squad.f1("house", "") == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans()),
        min_size=1,
        max_size=9,
        unique_by=lambda one: one[0],
    )
)
def test_best_score_is_that_of_the_best_threshold(questions: list[tuple[float, float, bool, bool]]) -> None:
    outcomes = [squad.Outcome(chance, score if has else -float(said), has) for chance, score, has, said in questions]

    def at(threshold: float) -> float:
        return sum(
            (score if has else float(not said)) if chance <= threshold else float(not has)
            for chance, score, has, said in questions
        )

    best = max(at(threshold) for threshold in [-1, *(chance for chance, *_ in questions)])
    assert squad.best_score(outcomes) == pytest.approx(best / len(questions))


@given(
    st.one_of(st.integers(-(10**9), 10**9), st.decimals(-1000, 1000, places=2)),
    st.sampled_from(["{}", " {} apples.", " ${}", "= {}\n7"]),
)
def test_a_number_is_right_however_it_is_written(value: Any, wording: str) -> None:
    document = {"answer": word_problem_text(float(value))}
    for written in (str(value), f"{value:,}", f"{value}0" if "." in str(value) else f"{value}.0"):
        assert word_problem.score(document, [wording.format(written)]) == {"exact_match": 1.0}
    assert word_problem.score(document, [wording.format(value + 1)]) == {"exact_match": 0.0}
    assert word_problem.score(document, ["none"]) == {"exact_match": 0.0}


def word_problem_text(value: float) -> str:
    row = Record("row", {"input": "?", "target": value})
    return next(FORMS["single_op"](row))["answer"]


def test_a_missing_file_skips_its_task_alone(tmp_path: Path) -> None:
    data = write_eval_data(tmp_path)
    next(data.glob("math_word_problems/svamp.json*")).unlink()
    next(data.glob("webquestions/test.json*")).unlink()
    found = {
        task.name: task for task in resolve(["closed_book", "math_word_problems", "svamp"], data, allow_network=False)
    }
    skipped = {name: task.reason for name, task in found.items() if isinstance(task, SkippedTask)}
    assert list(found) == [*GROUPS["closed_book"], *GROUPS["math_word_problems"]]
    assert set(skipped) == {"svamp", "webqs", "tydiqa_no_context", "asdiv"}
    assert str(data / "math_word_problems/svamp.json") in skipped["svamp"]
    assert str(data / "webquestions/test.json") in skipped["webqs"]
    assert all("\n" not in reason for reason in skipped.values())
    assert {task.group for task in found.values()} == {"closed_book", "math_word_problems"}


def test_sources() -> None:
    def sources(names: list[str], data_dir: Path | None, *, allow_network: bool) -> list[str]:
        tasks = resolve(names, data_dir, allow_network=allow_network)
        return [task.source if isinstance(task, ResolvedTask) else "skipped" for task in tasks]

    names = ["gsm8k", "coqa", "quac", "p_hop"]
    assert sources(names, None, allow_network=True) == ["network", "network", "skipped", "generator"]
    assert sources(names, None, allow_network=False) == ["skipped", "skipped", "skipped", "generator"]
    assert set(sources(["primitives"], None, allow_network=False)) == {"generator"}
    with pytest.raises(ValueError, match="did you mean hellaswag"):
        resolve(["helaswag"], None, allow_network=False)


def test_every_name_has_its_definition() -> None:
    files = [path for folder in ("*", "super_glue/*") for path in HARNESS.glob(f"{folder}/*.yaml")]
    known = {
        line.removeprefix("task: ")
        for path in files
        for line in path.read_text().splitlines()
        if line.startswith("task: ")
    }
    assert {task.harness for task in TASKS.values() if task.harness} <= known
    assert {task.offline for task in TASKS.values() if task.offline} == {
        path.stem for path in OFFLINE_FOLDER.glob("*_offline.yaml")
    }


def break_line(change: Callable[[dict[str, Any]], object]) -> Callable[[list[str]], None]:
    def edit(lines: list[str]) -> None:
        row = json.loads(lines[2])
        change(row)
        lines[2] = json.dumps(row)

    return edit


@pytest.mark.parametrize(
    ("task", "file", "edit", "message"),
    [
        ("piqa", "piqa/validation.jsonl", break_line(lambda row: row.pop("goal")), "line 3: no field 'goal'"),
        ("piqa", "piqa/validation.jsonl", break_line(lambda row: row.update(label=2)),
         "line 3: 'label' is 2, not one of 0 to 1"),
        ("gsm8k", "gsm8k/test.jsonl", break_line(lambda row: row.update(answer=7)),
         "line 3: 'answer' is 7, not a string"),
        ("gsm8k", "gsm8k/train.jsonl", lambda lines: lines.insert(4, "{"), "line 5: broken JSON"),
        ("nq_open", "nq_open/NQ-open.dev.jsonl", break_line(lambda row: row.update(answer=[])),
         "line 3: 'answer' is .*, not a list"),
        ("boolq", "boolq/train.jsonl", break_line(lambda row: row.update(answer=1)),
         "line 3: 'answer' is 1, not true or false"),
        ("winogrande", "winogrande/validation.jsonl", break_line(lambda row: row.update(sentence="so")),
         "line 3: its sentence has no gap"),
        ("mawps_singleop", "math_word_problems/singleop.jsonl", break_line(lambda row: row.update(target="two")),
         "line 3: 'target' is 'two'"),
        ("arc_easy", "arc/ARC-Easy-validation.jsonl", break_line(lambda row: row.update(answerKey="E")),
         "line 3: 'answerKey' is 'E'"),
        ("triviaqa", "triviaqa/triviaqa_3000.jsonl", break_line(lambda row: row.update(context="Who?")),
         "line 3: 'context' is 'Who"),
        ("lambada_openai", "lambada/lambada_openai.jsonl", lambda lines: lines.clear(), "holds no rows"),
        ("wikitext", "wikitext2/test.txt", lambda lines: lines.clear(), "holds no rows"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named(
    tmp_path: Path, task: str, file: str, edit: Callable[[list[str]], None], message: str
) -> None:
    write_eval_data(tmp_path)
    for path in tmp_path.glob(f"{file}*"):
        path.unlink()
    plain = tmp_path / file
    lines = [json.dumps(row.fields) for row in read_rows(next(write_eval_data(tmp_path / "again").glob(f"{file}*")))]
    edit(lines)
    plain.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=re.escape(str(plain)) + f".*{message}") as raised:
        load(task, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_malformed_entry_of_a_list_is_named(tmp_path: Path) -> None:
    write_eval_data(tmp_path)
    path = next((tmp_path / "squad").iterdir())
    (article,) = (row.fields for row in read_rows(path)[:1])
    article["paragraphs"][0]["qas"][1].pop("id")
    path.unlink()
    (tmp_path / "squad/dev-v2.0.json").write_text(json.dumps({"data": [article]}))
    with pytest.raises(ValueError, match=r"json, entry 1, paragraphs, entry 1, qas, entry 2: no field 'id'"):
        load("squadv2", tmp_path)
    (tmp_path / "math_word_problems/svamp.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="neither a list nor an object"):
        read_rows(tmp_path / "math_word_problems/svamp.json")


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    data = write_eval_data(tmp_path)
    path = next(path for path in data.rglob("*.gz"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged archive")):
        read_rows(path)


class Dummy(DummyLM):
    """The harness's dummy answers at random, but names a tokenizer that it would fetch for the report."""

    tokenizer = None  # pyright: ignore[reportAssignmentType]


def test_the_harness_runs_them_all_without_a_network(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    resolved = [
        task
        for task in resolve([*OFFLINE, *GROUPS["primitives"]], data_dir, allow_network=False)
        if isinstance(task, ResolvedTask)
    ]
    tasks: list[Any] = [one for task in resolved for one in load_tasks(task, data_dir, num_examples=8)]
    manager = lm_eval.tasks.TaskManager(include_path=OFFLINE_FOLDER, include_defaults=False)
    results: Any = simple_evaluate(model=Dummy(), tasks=tasks, limit=4, bootstrap_iters=2, task_manager=manager)
    assert set(results["results"]) == {task.harness_name for task in resolved}
    assert len(resolved) == len(OFFLINE) + 4
    for name, scores in results["results"].items():
        values = {key: value for key, value in scores.items() if isinstance(value, float) and "stderr" not in key}
        assert values, name
        assert all(math.isfinite(value) for value in values.values()), name
    shots = {task.harness_name: task.num_fewshot for task in resolved}
    assert all(shots[name] in (None, count) for name, count in results["n-shot"].items())
