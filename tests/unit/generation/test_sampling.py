"""Generation: cached equals uncached, a batch equals its rows, draws follow their law, and the command line works on a
real run."""

import math
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train import train_tokenizer
from pretrain.generation.generate import generate
from pretrain.generation.sampling import Generation, choose_tokens, draw_uniform
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.run.trained_model import load_trained_model
from tests.support.commands import Commands
from tests.support.text_runs import LLAMA, SEQ_LEN, SMALL, save_text_run

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tools" / "generate.py"
VOCAB, EOS = 61, 3
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": {
        "norm": "layer",
        "positions": "learned",
        "activation": "gelu",
        "bias": "all",
        "tied_head": True,
        "num_loop_layers": 2,
    },
    "shared keys": {"num_loop_layers": 2, "num_loops": 3, "num_coda_layers": 1, "loop": {"keys": "every"}},
    "regularised": {"num_loop_layers": 4, "loop_regulariser": {"block_size": 2, "weight": 1.0}},
}
PROMPTS = [[2, 10, 11, 12, 13, 14, 15], [2], [2, 30, 31], [2, 40, 41, 42, 43, 44, 45]]


def make_model(family: str = "llama") -> LoopedGPT:
    model = LoopedGPT(ModelSection.model_validate(SMALL | FAMILIES[family]), SEQ_LEN).double()
    initialise(model, seed=1)
    return model


def how(**changes: Any) -> Generation:
    return Generation(**({"max_new_tokens": 12, "vocab_size": VOCAB, "end_ids": (EOS,)} | changes))


def record_logits(model: LoopedGPT) -> list[Tensor]:
    """The logits that generation asks the model for, step by step."""
    recorded: list[Tensor] = []

    def all_logits(states: Tensor) -> Tensor:
        recorded.append(LoopedGPT.all_logits(model, states))
        return recorded[-1]

    model.all_logits = all_logits
    return recorded


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_loops", [None, 3])
def test_cached_and_padded_equals_one_plain_pass_over_each_row(family: str, num_loops: int | None) -> None:
    model = make_model(family)
    logits = record_logits(model)
    rows = generate(model, PROMPTS, how(num_loops=num_loops, end_ids=()))
    for number, (prompt, new) in enumerate(zip(PROMPTS, rows, strict=True)):
        whole = torch.tensor([prompt + new])
        plain = LoopedGPT.all_logits(model, model(whole, num_loops))[len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack([step[number] for step in logits]), plain, rtol=0, atol=1e-12)
        assert new == plain[:, :VOCAB].argmax(dim=-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@settings(max_examples=10, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_row_is_the_same_in_every_batch(temperature: float, prompts: list[list[int]], seed: int) -> None:
    model, settings = make_model(), how(temperature=temperature, top_p=0.9, seed=seed)
    together = generate(model, prompts, settings)
    alone = [generate(model, [prompt], settings, row_numbers=[number])[0] for number, prompt in enumerate(prompts)]
    assert together == alone


def test_a_row_ends_before_its_end_token_and_the_others_go_on() -> None:
    model = make_model()
    free = generate(model, PROMPTS, how(end_ids=()))
    eos = free[0][3]
    ended = generate(model, PROMPTS, how(end_ids=(eos,)))
    assert ended == [row[: row.index(eos)] if eos in row else row for row in free]
    assert len(ended[0]) <= 3 < max(map(len, ended))


def test_generation_stops_with_its_last_row() -> None:
    model, steps = make_model(), []
    eos = generate(model, PROMPTS[:1], how(end_ids=()))[0][0]

    def track(tokens: Any) -> Any:
        for step in tokens:
            steps.append(step)
            yield step

    assert generate(model, PROMPTS[:1], how(end_ids=(eos,)), track=track) == [[]] and steps == []
    assert generate(model, PROMPTS[:1], how(max_new_tokens=3, end_ids=()), track=track) == [steps]


def test_seeds_and_loop_counts_matter_and_repeat() -> None:
    model, prompts = make_model(), PROMPTS[:2]
    found = {
        (seed, loops): generate(model, prompts, how(temperature=1.0, seed=seed, num_loops=loops))
        for seed in (0, 1)
        for loops in (1, 4)
    }
    assert len({str(rows) for rows in found.values()}) == 4
    assert generate(model, prompts, how(temperature=1.0, seed=1, num_loops=4)) == found[1, 4]


def test_rows_of_the_embedding_beyond_the_tokenizer_are_never_chosen() -> None:
    model = make_model()
    rows = generate(model, PROMPTS, how(max_new_tokens=40, temperature=5.0, vocab_size=50, end_ids=()))
    assert max(max(row) for row in rows) < 50


def test_draws_follow_the_tempered_distribution() -> None:
    num_draws, temperature = 20_000, 0.7
    logits = torch.tensor([0.3, -1.0, 2.0, 1.0, -0.5])
    uniforms = torch.tensor([draw_uniform(0, 0, position) for position in range(num_draws)], dtype=torch.float64)
    observed = Counter(choose_tokens(logits.expand(num_draws, -1), how(temperature=temperature), uniforms).tolist())
    expected = num_draws * (logits / temperature).softmax(dim=-1)
    statistic = sum((observed[token] - float(count)) ** 2 / float(count) for token, count in enumerate(expected))
    assert statistic < 33.4  # chi-square with 4 degrees of freedom: once in a million draws


@given(
    st.lists(st.floats(-8, 8), min_size=1, max_size=20),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
    st.floats(1e-12, 1, exclude_max=True),
)
def test_top_p_keeps_the_fewest_tokens_that_have_its_mass(
    values: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    settings = how(temperature=temperature, top_p=top_p)
    token = int(choose_tokens(logits, settings, torch.tensor([uniform], dtype=torch.float64)))
    probabilities = (logits[0] / temperature).softmax(dim=-1)
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert likelier < top_p
    if uniform < 0.5 * float(probabilities.max()):
        assert math.isclose(probabilities[token], probabilities.max())


def test_draws_are_unrelated_between_rows_and_positions() -> None:
    values = {draw_uniform(seed, row, position) for seed in range(5) for row in range(5) for position in range(5)}
    assert len(values) == 125
    assert all(0 < value < 1 for value in values)


@pytest.mark.parametrize(
    ("prompts", "changes", "family", "message"),
    [
        ([[1], []], {}, "llama", "prompt 1 has no token"),
        ([[VOCAB]], {}, "llama", "the vocabulary has 61"),
        ([[1] * 60], {}, "gpt2", "may have 71 tokens, but the model learned 64 positions"),
    ],
)
def test_bad_prompts_are_named(prompts: list[list[int]], changes: dict[str, Any], family: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(make_model(family), prompts, how(**changes))


@pytest.mark.parametrize(
    "changes", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_bad_settings_are_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))}="):
        how(**changes)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two checkpoints of different weights, as the trainer leaves it."""
    return save_text_run(tmp_path_factory.mktemp("run"))


def test_a_run_is_loaded_at_its_newest_or_at_a_chosen_step(run_dir: Path) -> None:
    for step, wanted in ((None, 20), (10, 10)):
        trained = load_trained_model(run_dir, torch.device("cpu"), step=step)
        expected = LoopedGPT(trained.saved.model, SEQ_LEN)
        initialise(expected, seed=wanted)
        assert (trained.step, trained.problems) == (wanted, [])
        for name, parameter in trained.model.named_parameters():
            assert torch.equal(parameter, expected.get_parameter(name)), name


def test_what_cannot_be_loaded_is_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint of step 15; there are step-00000020, step-00000010"):
        load_trained_model(run_dir, torch.device("cpu"), step=15)
    with pytest.raises(ValueError, match="no checkpoints there: give the directory of a run"):
        load_trained_model(tmp_path, torch.device("cpu"))
    with pytest.raises(ValueError, match="no such tokenizer file"):
        load_trained_model(run_dir, torch.device("cpu"), tokenizer=tmp_path / "missing.model")
    (tmp_path / "other.model").write_bytes(
        train_tokenizer([f"another text {number}\n" for number in range(50)], vocab_size=290)[0]
    )
    with pytest.raises(ValueError, match="is not the tokenizer that"):
        load_trained_model(run_dir, torch.device("cpu"), tokenizer=tmp_path / "other.model")


def test_the_command_line_generates_what_the_library_does(run_dir: Path, tmp_path: Path, commands: Commands) -> None:
    (tmp_path / "prompts.txt").write_text("All was\n\nto the sea\n")
    sampling = ["--temperature", "1.5", "--seed", "5", "--max-new-tokens", "7", "--num-loops", "3", "--batch", "2"]
    prompted = ["--prompt", "the king", "--prompt-file", tmp_path / "prompts.txt"]
    done = commands.run(SCRIPT, "--run", run_dir, *prompted, *sampling)
    said = f"{run_dir}, step 20, 3 loops, 8 layers deep, 512 bytes of keys a token\n"
    assert (done.returncode, done.stderr) == (0, said)
    tokenizer = Tokenizer.load(run_dir / "tokenizer.model")
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("the king", "All was", "to the sea")]
    chosen = how(
        max_new_tokens=7,
        vocab_size=tokenizer.vocab_size,
        end_ids=(tokenizer.eos_id,),
        num_loops=3,
        temperature=1.5,
        top_p=0.95,
        seed=5,
    )
    rows = generate(load_trained_model(run_dir, torch.device("cpu")).model, prompts, chosen)
    texts = [tokenizer.decode(prompt + row) for prompt, row in zip(prompts, rows, strict=True)]
    assert done.stdout == f"\n{'-' * 80}\n".join(texts) + "\n"


def test_the_command_line_lets_tokens_stop_on_their_own(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rule, status, said in (
        (
            "auto:change:1e9",
            0,
            "10 layers deep, 640 bytes of keys a token\nauto:change:1e+09: 1.00 loops a new token\n",
        ),
        ("auto:gate", 2, "the model has no gate (model.loop.exit=none); rules without one: kl, change, entropy\n"),
    ):
        command = [SCRIPT, "--run", run_dir, "--prompt", "the king", "--num-loops", rule, "--max-loops", 4]
        monkeypatch.setattr(sys, "argv", [*map(str, command), "--max-new-tokens", "5"])
        with pytest.raises(SystemExit, match=str(status)):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out, err = capsys.readouterr()
        assert err.endswith(said) and bool(out) == (status == 0)


SEVERAL = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (SCRIPT, "tools/generate.py works"),
        (SCRIPT.parent / "eval_depth.py", "--num-loops auto:kl, by which tokens stop on their own, works"),
    ],
)
def test_several_ranks_are_refused_where_tokens_stop_on_their_own(
    script: Path, what: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--run", str(run_dir), "--num-loops", "auto:kl"])
    for name, value in SEVERAL.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(script), run_name="__main__")
    where = "start it alone, without pretrain.launch, torchrun or srun"
    assert capsys.readouterr().err == f"error: {what} in one process, and 2 were started: {where}\n"


@pytest.mark.parametrize("option", [("--max-loops", "4"), ("--keys", "share")])
def test_what_only_auto_reads_is_refused_without_it(
    option: tuple[str, str], run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [SCRIPT, "--run", run_dir, "--prompt", "the king", "--num-loops", 3, *option]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().err == f"error: {option[0]} is for --num-loops auto\n"


def test_the_command_line_says_what_is_wrong_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary").write_bytes(b"text\xff")
    for arguments, message in (
        (
            ["--run", tmp_path / "nothing", "--prompt", "x"],
            f"{tmp_path / 'nothing'}: no checkpoints there: give the directory",
        ),
        (["--run", tmp_path], "no prompt: give --prompt TEXT or --prompt-file FILE"),
        (["--run", tmp_path, "--prompt-file", tmp_path / "binary"], f"{tmp_path / 'binary'}: not UTF-8 text: byte 4"),
        (
            ["--run", tmp_path, "--prompt-file", tmp_path / "absent"],
            f"{tmp_path / 'absent'}: No such file or directory",
        ),
    ):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out, err = capsys.readouterr()
        assert err.startswith(f"error: {message}")
        assert (out, err.count("\n")) == ("", 1)
