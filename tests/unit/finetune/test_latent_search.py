"""What is read from thoughts, against whole passes over each question and name alone."""

import csv
import json
import math
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.answers.evaluation import load_questions
from finetune.answers.scoring import answer_settings
from finetune.latent.generation import AnswerSettings
from finetune.latent.thinking import Tokens
from finetune.run.finetuned_model import load_finetuned
from finetune.search.figures import best_for_cost
from finetune.search.graph_text import GraphText
from finetune.search.latent_search import name_probabilities, name_tokens, search_values, thought_statistics
from finetune.search.search_report import Searcher
from finetune.search.search_tree import concepts, node_values
from finetune.search.tree_layout import view_tree
from pretrain.data.tokenizers.symbols import SymbolTokenizer, write_symbols
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.tasks.registry import task_class
from pretrain.tasks.task import Example
from tests.support.example_files import write_examples
from tests.support.extending import forget
from tests.support.finetuned_runs import MODEL, SEQ_LEN, save_run, tokenizer_bytes
from tests.unit.finetune.test_generation import BOT, EOT, PAUSE, PROMPTS, VOCAB, by_definition, how
from tests.unit.finetune.test_scoring import make_row
from tests.unit.finetune.test_search_tree import GRAPH, QUESTION
from tests.unit.generation.test_sampling import make_model

SCRIPT = Path(__file__).parents[3] / "tools" / "latent_search.py"
NAMES = [[(20,), (21, 22, 23)], [(24, 25)], [(21, 22), (26,), (27, 28, 29), (21, 30)], [(31, 32)]]


@torch.no_grad()
def probability(
    model: LoopedGPT, prompt: list[int], name: tuple[int, ...], settings: AnswerSettings, eot: int = EOT
) -> float:
    """By one whole pass over question, thoughts, forced text and name."""
    assert model.embedding is not None
    thoughts = by_definition(model, prompt, settings)[1]
    pauses = [PAUSE] * settings.num_slots if isinstance(settings.thinking, Tokens) else []
    markers = [eot] if settings.markers.after else []
    after = model.embedding(torch.tensor([*pauses, *markers, *settings.forced_text, *name]))
    inputs = torch.cat((model.embedding(torch.tensor(prompt)), thoughts, after))[None]
    states = model(torch.zeros(inputs.shape[:2], dtype=torch.int64), settings.num_loops, embeddings=inputs)
    logs = model.all_logits(states)[:, : settings.vocab_size].log_softmax(-1)[-len(name) - 1 : -1]
    return math.exp(sum(float(logs[place, token]) for place, token in enumerate(name)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("slots", "num_thoughts"), [("thought", 0), ("thought", 3), ("pause", 2), ("none", 0)])
def test_the_value_of_a_name_is_the_product_over_its_tokens(family: str, slots: str, num_thoughts: int) -> None:
    model, settings = (
        make_model(family),
        how(slots=slots, num_slots=num_thoughts, num_loops=3, forced_text=(9, 17), max_new_tokens=1),
    )
    found = name_probabilities(model, PROMPTS, NAMES, settings)
    for prompt, names, values in zip(PROMPTS, NAMES, found, strict=True):
        assert values == pytest.approx([probability(model, prompt, name, settings) for name in names], rel=1e-9)


def test_names_of_one_token_sum_to_one_over_the_vocabulary() -> None:
    every = [(token,) for token in range(VOCAB)]
    for values in name_probabilities(make_model(), PROMPTS, [every] * len(PROMPTS), how(num_slots=2)):
        assert sum(values) == pytest.approx(1, rel=1e-9)


def test_every_concept_of_every_question_gets_a_value_whatever_the_batch() -> None:
    tokenizer, text = SymbolTokenizer(tokenizer_bytes()), GraphText.of_question(QUESTION)
    assert text is not None
    model = LoopedGPT(ModelSection.model_validate(MODEL), SEQ_LEN).double()
    initialise(model, seed=0)
    other = "Ab,bc,cd,Ba,?Ada"
    graphs = [GRAPH, text.form.graph(other)]
    prompts = [[*tokenizer.encode(question), BOT] for question in (QUESTION, other)]
    settings = how(num_slots=2, vocab_size=tokenizer.vocab_size)
    values = search_values(model, prompts, graphs, text, tokenizer, settings, batch=2)
    alone = search_values(model, prompts, graphs, text, tokenizer, settings, batch=1)
    assert [value._replace(value=0) for value in values] == [value._replace(value=0) for value in alone]
    assert [value.value for value in values] == pytest.approx([value.value for value in alone], rel=1e-9)
    assert len(values) == sum(len(concepts(graph)) for graph in graphs)
    assert {(value.question, value.num_thoughts) for value in values} == {(0, 2), (1, 2)}
    first = next(value for value in values if value.name == "c" and value.question == 0)
    chance, answer = (probability(model, prompts[0], tuple(tokenizer.encode(text)), settings) for text in "c=")
    assert first.value == pytest.approx(chance / (1 - answer), rel=1e-9)


def test_names_are_spelt_as_they_stand_in_a_step() -> None:
    letters = SymbolTokenizer(write_symbols([*"abcdefghijklmnopqrstuvwxyzE ", "Every", " rem", "pus", "Every im"]))
    assert name_tokens(letters, "Every", " rempus") == tuple(letters.encode(" rempus"))
    assert len(name_tokens(letters, "Every", " rempus")) == 2
    with pytest.raises(ValueError, match="no boundary between 'Every' and ' impus'"):
        name_tokens(letters, "Every", " impus")


def test_statistics_are_those_of_the_thoughts_by_definition() -> None:
    model, tokenizer = make_model(), SymbolTokenizer(write_symbols([chr(33 + number) for number in range(54)]))
    settings = how(max_new_tokens=1, num_slots=3)
    thoughts = torch.stack([by_definition(model, prompt, settings)[1] for prompt in PROMPTS])  # [questions, k, d]
    found = thought_statistics(model, PROMPTS, tokenizer, settings, batch=3)
    norms = thoughts.norm(dim=-1)
    assert found.norms == pytest.approx(norms.mean(0).tolist())
    assert found.norm_deviations == pytest.approx(norms.std(0, correction=0).tolist())
    dots = (thoughts[:, 1:] * thoughts[:, :-1]).sum(-1) / (norms[:, 1:] * norms[:, :-1])
    assert found.cosines == pytest.approx(dots.mean(0).tolist())
    assert found.cosine_deviations == pytest.approx(dots.std(0, correction=0).tolist())
    assert found.token_norm == pytest.approx(model.get_parameter("embedding.weight")[:VOCAB].norm(dim=-1).mean().item())
    likeliest = model.all_logits(thoughts[2, 1][None])[0, :VOCAB].softmax(0).detach()
    token = int(likeliest.argmax())
    special = ("<pad>", "<bos>", "<eos>", "<bot>", "<eot>", "<latent>", "<pause>")
    name = special[token] if token < len(special) else tokenizer.decode([token])
    assert found.top_tokens[2][1][0] == (name, pytest.approx(float(likeliest[token]), rel=1e-5))
    assert [len(found.top_tokens), len(found.top_tokens[0]), len(found.top_tokens[0][0])] == [4, 3, 5]


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_command_leaves_figures_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "tiny", tmp_path / "chain"
    save_run(run)
    save_run(other, step=3, method={"name": "cot"})
    arguments = [
        "--run",
        run,
        "--latents",
        "0,1,2",
        "--num-loops",
        "1,2",
        "--num-examples",
        4,
        "--compare",
        other,
        "--question",
        3,
    ]
    assert run_tool(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert "figures in" in out
    assert re.search(r"^tiny, step 7, .*; best shortcut [0-9.]+ %; chance 50.0 %$", out, re.MULTILINE)
    folder = run / "analysis"
    names = {"process", "parallelism", "height", "tree", "thoughts", "grid"}
    assert {path.name for path in folder.glob("*.[ps][nv]g")} == {
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
    }
    assert all(path.stat().st_size > 10_000 for path in folder.glob("*.png"))
    drawn = {name: (folder / f"{name}.svg").read_text() for name in names}
    assert all(word in drawn["process"] for word in (">cot<", ">no steps, right answer<", ">hallucination<"))
    assert ">chain<" not in drawn["process"], "methods, not names of runs"
    assert ">with the standard error over nodes<" in drawn["height"]
    assert "the probability that the next step names the node" in drawn["tree"]
    numbers = json.loads((folder / "numbers.json").read_text())
    assert [bar["label"] for bar in numbers["process"]] == ["0 thoughts", "1 thought", "2 thoughts", "chain"]
    assert all(sum(bar["shares"].values()) == pytest.approx(1) for bar in numbers["process"])
    assert [(row["num_loops"], row["num_thoughts"]) for row in numbers["grid"]] == [
        (loops, k) for loops in (1, 2) for k in (0, 1, 2)
    ]
    trained_loops = [row["accuracy"] for row in numbers["grid"] if row["num_loops"] == 2]
    assert [bar["accuracy"] for bar in numbers["process"][:3]] == trained_loops
    values = list(csv.DictReader((folder / "node_values.csv").open()))
    finetuned = load_finetuned(run, torch.device("cpu"))
    searcher = Searcher(finetuned, load_questions(finetuned, num_examples=4), 64)
    assert len(values) == 2 * sum(len(concepts(graph)) for graph in searcher.graphs)
    best = [
        max(float(row["value"]) for row in values if (row["question"], row["num_thoughts"]) == (str(q), "2"))
        for q in range(4)
    ]
    assert numbers["after_thoughts"]["2"]["mean_top_values"][0] == pytest.approx(sum(best) / 4)
    assert numbers["thoughts"]["top_tokens"] == [
        [list(pair) for pair in row] for row in searcher.thoughts(2).top_tokens[3]
    ]  # type: ignore[union-attr]


def test_questions_without_a_graph_show_what_their_thoughts_decode_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the paper's case study of GSM8k."""
    run, file = tmp_path / "tiny", tmp_path / "sums.json"
    save_run(run)
    write_examples(file, [Example("1,2,3?", ("3", "6"), "6"), Example("4,5?", ("9",), "9")])
    arguments = ["--run", run, "--data", file, "--latents", "0,2", "--question", "1"]
    assert run_tool(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  question 1: 4,5?" in lines and "    steps 9, answer 9" in lines
    decoded = [line for line in lines if line.startswith("    thought ")]
    assert [line.split(":")[0] for line in decoded] == ["    thought 1", "    thought 2"]
    assert [line.count(" %") for line in decoded] == [5, 5]
    assert [line for line in lines if "% right" in line and "loops: 2" in line]
    folder = run / "analysis"
    assert {path.stem for path in folder.glob("*.svg")} == {"thoughts", "grid"}
    assert lines[-2].startswith("    then writes '") and lines[-2].endswith(("': right", "': wrong"))
    assert lines[-1].endswith("numbers: numbers.json") and not (folder / "node_values.csv").exists()
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["process"] == [] and len(numbers["grid"]) == 2


def searcher_of(run: Path) -> Searcher:
    finetuned = load_finetuned(run, torch.device("cpu"))
    return Searcher(finetuned, load_questions(finetuned, num_examples=3), 2)


def test_pauses_leave_values_but_no_thoughts(tmp_path: Path) -> None:
    save_run(tmp_path / "tiny", method={"name": "pause_as_thought"})
    searcher = searcher_of(tmp_path / "tiny")
    assert (searcher.thoughts(2), searcher.judge(2).label) == (None, "2 pauses")
    assert len({value.value for value in searcher.values(2)}) > 10


def test_questions_in_words_are_searched_after_the_word_that_begins_a_step(tmp_path: Path) -> None:
    save_run(tmp_path / "tiny", task="prosqa")
    searcher = searcher_of(tmp_path / "tiny")
    value = searcher.values(2)[0]
    trained = searcher.finetuned.trained
    tokenizer, question = trained.tokenizer, searcher.questions.encoded[0].question
    name = tuple(tokenizer.encode(f" {value.name}"))
    settings = answer_settings(searcher.finetuned.config, tokenizer, num_slots=2)
    settings = replace(settings, forced_text=tuple(tokenizer.encode("Every")))
    wanted = probability(trained.model, [*question, tokenizer.bot_id], name, settings, eot=tokenizer.eot_id)
    assert len(name) > 2
    assert value.value == pytest.approx(wanted, rel=1e-4)  # fp32
    assert sum(searcher.judge(2).shares.values()) == pytest.approx(1)


def test_proofs_of_prontoqa_are_searched_to_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each question's steps begin with its person; values equal those of whole passes."""
    run, other = tmp_path / "tiny", tmp_path / "chain"
    save_run(run, task="prontoqa")
    save_run(other, task="prontoqa", method={"name": "cot"})
    assert run_tool(monkeypatch, "--run", run, "--latents", "0,1,2", "--compare", other, "--batch", 4) == 0
    assert "figures in" in capsys.readouterr().out
    folder = run / "analysis"
    assert {path.stem for path in folder.glob("*.svg")} == {
        "process", "parallelism", "height", "tree", "thoughts", "grid"
    }  # fmt: skip
    found = list(csv.DictReader((folder / "node_values.csv").open()))
    searcher = searcher_of(run)
    trained = searcher.finetuned.trained
    settings = answer_settings(searcher.finetuned.config, trained.tokenizer, num_slots=2)
    for number, graph in enumerate(searcher.graphs):
        path = [graph.idx_to_symbol[node] for node in graph.shortest_paths()[0]]
        rows = {row["name"]: row for row in found if (row["question"], row["num_thoughts"]) == (str(number), "2")}
        assert set(rows) == {graph.idx_to_symbol[node] for node in concepts(graph)}
        assert [rows[name]["distance"] for name in path[1:]] == [str(step) for step in range(len(path) - 1)]
        person, name = path[0], path[-1]  # after two thoughts about two hops, the property is next
        forced = replace(settings, forced_text=tuple(trained.tokenizer.encode(f"{person} is")))
        wanted = probability(
            trained.model, [*searcher.questions.encoded[number].question, trained.tokenizer.bot_id],
            tuple(trained.tokenizer.encode(f" {name}")), forced, eot=trained.tokenizer.eot_id,
        )  # fmt: skip
        assert float(rows[name]["value"]) == pytest.approx(wanted, rel=1e-4)  # fp32


ROADS = """
from pretrain.tasks.prosqa.prosqa_symbolic import ProsQASymbolic, SymbolForm

class RoadForm(SymbolForm):
    def graph(self, question):
        if not question.startswith(":"):
            raise ValueError("no roads")
        return super().graph(question[1:])

class Roads(ProsQASymbolic):
    name, graph_form, shortcuts = "roads", RoadForm(), {}
    def make(self, random):
        example = super().make(random)
        return example._replace(question=f":{example.question}")
"""


def test_a_task_of_the_user_that_says_how_it_writes_a_graph_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_roads.py").write_text(ROADS)
    monkeypatch.chdir(tmp_path)
    try:
        save_run(tmp_path / "tiny", task="my_roads:Roads")
        searcher = searcher_of(tmp_path / "tiny")
        assert len(searcher.graphs) == 3 and len({value.value for value in searcher.values(2)}) > 10
        assert sum(searcher.judge(2).shares.values()) == pytest.approx(1)
    finally:
        task_class.cache_clear()
        forget(tmp_path)


def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, file, run = tmp_path / "chain", tmp_path / "sums.json", tmp_path / "tiny"
    save_run(chain, method={"name": "cot"})
    save_run(run)
    write_examples(file, [Example("1,2,3?", ("1",), "6")])
    for arguments, message in (
        (["--run", chain], f"{chain}: method cot has no thoughts to search with; --compare takes such runs"),
        (
            ["--run", run, "--data", file, "--compare", chain],
            "--compare classifies paths in a graph, and these questions have none",
        ),
        (["--run", run, "--question", "6"], "--question 6: there are 6 questions, from 0"),
        (["--run", run, "--out", file], f"--out {file}: is a file; name a folder"),
    ):
        assert run_tool(monkeypatch, *arguments) == 2
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"error: {message}\n")


def test_the_layers_of_a_tree_are_distances_and_all_that_is_reached_is_drawn() -> None:
    values = node_values(0, GRAPH, 2, dict.fromkeys("abcdefg", 0.25))
    view = view_tree(GRAPH, values)
    depths = {node.name: -node.place[1] for node in view.nodes.values()}
    assert depths == {"A": 0, "a": 1, "b": 1, "c": 2, "d": 2, "f": 2, "e": 3}
    assert (view.width, view.depth, len({node.place for node in view.nodes.values()})) == (3, 4, 7)
    assert {node.name for node in view.nodes.values() if node.is_frontier} == {"c", "d", "f"}
    assert [node.name for node in view.nodes.values() if node.is_target] == ["e"]
    shortest = {view.nodes[edge.parent].name + view.nodes[edge.child].name for edge in view.edges if edge.is_shortest}
    assert (shortest, len(view.edges)) == ({"Aa", "Ab", "ac", "bc", "ce"}, 8)


def test_the_best_for_the_cost_are_those_that_nothing_cheaper_matches() -> None:
    rows = [make_row(num_thoughts=number) for number in range(4)]
    rows = [
        replace(row, flops_per_example=cost, accuracy=share)
        for row, cost, share in zip(rows, (4, 1, 2, 3), (0.9, 0.5, 0.5, 0.75), strict=True)
    ]
    assert best_for_cost(rows) == [(1, 50), (3, 75), (4, 90)]
