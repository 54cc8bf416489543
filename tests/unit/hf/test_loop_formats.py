"""Published looped models as runs: logits of their published graphs, in and out again bitwise, what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.hf.exporting import export_run
from pretrain.hf.importing import import_model
from pretrain.hf.loop_formats.table import FORMATS, TYPES
from pretrain.model.exits import log_exit_probabilities
from pretrain.model.gpt import LoopedGPT
from pretrain.run.trained_model import load_trained_model
from tests.support.commands import Commands
from tests.support.published_loops import SEQ_LEN, VOCAB, PublishedModel, huginn, nanbeige, ouro
from tests.unit.hf.test_convert import assert_bitwise, byte_level, make_run, tokenizer  # noqa: F401 - fixtures
from tools import convert_checkpoint

ROOT = Path(__file__).parents[3]
MODELS: dict[str, PublishedModel] = {
    "nanbeige": nanbeige(),
    "nanbeige, three loops, no norm between": nanbeige(num_loops=3, skip_loop_final_norm=True),
    "ouro": ouro(),
    "huginn": huginn(),
    "huginn, untied, without biases": huginn(tie_embeddings=False, qk_bias=False),
}
models = pytest.mark.parametrize("name", MODELS)


def imported(folder: Path, run: Path) -> LoopedGPT:
    lines = import_model(folder=folder, run=run, new_tokens=False)
    assert "logits were not compared: transformers has no class for model_type=" in lines[-1]
    return load_trained_model(run, torch.device("cpu")).model.double()


def start_of(model: LoopedGPT, tokens: Tensor) -> Tensor:
    """The state [s, d] with which the loop begins: noise as Huginn's, the same for every row, and no input."""
    states, _ = model.begin(tokens, model.context(tokens))
    first, second = states.unflatten(0, tokens.shape)
    assert torch.equal(first, second) and first.abs().max() < 3 * 0.4**0.5
    assert first.std() == pytest.approx(0.4**0.5 * 0.9866, rel=0.1)  # of a normal distribution cut off at 3
    return first


def some_tokens() -> Tensor:
    return torch.randint(VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))


@models
def test_logits_are_those_of_the_published_graph(tmp_path: Path, byte_level: Path, name: str) -> None:  # noqa: F811
    """At its own loop count, at fewer and at more, all of one pass."""
    published, tokens = MODELS[name], some_tokens()
    model = imported(published.write(tmp_path / "published", byte_level), tmp_path / "run")
    assert model.config.num_loops == published.num_loops
    context, found = model.context(tokens), {}
    if published.config["model_type"] == "huginn_raven":
        published.start = start_of(model, tokens)
    for loops, states in enumerate(model.passes(tokens, 4, context), start=1):
        found[loops] = model.logits(model.finish(states, context, loops)).unflatten(0, tokens.shape)
    for loops, logits in found.items():
        torch.testing.assert_close(logits, published.logits(tokens, loops), rtol=1e-7, atol=1e-7)


@models
def test_in_and_out_again_is_bitwise(tmp_path: Path, byte_level: Path, name: str) -> None:  # noqa: F811
    published = MODELS[name]
    folder = published.write(tmp_path / "published", byte_level)
    imported(folder, tmp_path / "run")
    form = TYPES[published.config["model_type"]]
    (written,) = [key for key, each in FORMATS.items() if each is form]
    lines = export_run(run=tmp_path / "run", out=tmp_path / "out", published=written)
    assert "logits on random tokens differ by at most 0.0e+00 of the largest" in lines[-1]
    assert_bitwise(load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config.get(key, "missing") for key in published.config} == published.config


def test_the_gate_of_ouro_is_read_where_theirs_reads_it(tmp_path: Path, byte_level: Path) -> None:  # noqa: F811
    published, tokens = MODELS["ouro"], some_tokens()
    model = imported(published.write(tmp_path / "published", byte_level), tmp_path / "run")
    passes = model.passes(tokens, 4, model.context(tokens))
    stops = torch.stack([model.exit_log_odds(states).sigmoid().unflatten(0, tokens.shape) for states in passes])
    torch.testing.assert_close(stops, published.stops(tokens, 4), rtol=1e-7, atol=1e-7)
    assert stops.std() > 0.01
    left = (1 - stops[:-1]).cumprod(0)  # theirs: the share of each step but the last, which takes what is left
    shares = torch.cat((stops[:1], stops[1:-1] * left[:-1], left[-1:]))
    log_odds = torch.stack([model.exit_log_odds(states) for states in model.passes(tokens, 3, model.context(tokens))])
    ours = log_exit_probabilities(log_odds).exp().unflatten(1, tokens.shape)
    torch.testing.assert_close(ours, shares, rtol=1e-7, atol=1e-7)


OURO_FULL = {
    "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 128, "max_position_embeddings": 65536, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
FULL: dict[str, tuple[PublishedModel, int]] = {  # published sizes, and parameters added up by hand
    "Ouro-1.4B": (ouro(**OURO_FULL, num_hidden_layers=24), 2 * 49152 * 2048 + 24 * 51_388_416 + 2 * 2048 + 1),
    "Ouro-2.6B": (ouro(**OURO_FULL, num_hidden_layers=48), 2 * 49152 * 2048 + 48 * 51_388_416 + 2 * 2048 + 1),
    "huginn-0125": (
        huginn(
            vocab_size=65536, n_embd=5280, n_heads=55, num_attention_heads=55, num_key_value_heads=55, block_size=4096,
            intermediate_size=17920, n_layers=8, n_layers_in_recurrent_block=4, n_layers_in_coda=2, mean_recurrence=32,
        ),
        65536 * 5280 + 8 * (4 * 5280**2 + 3 * 5280 * 17920 + 6 * 5280) + 2 * 5280**2 + 5280,
    ),
    "Nanbeige4.2-3B": (
        nanbeige(
            vocab_size=166144, hidden_size=3072, intermediate_size=10752, num_attention_heads=48,
            num_key_value_heads=8, head_dim=128, kv_channels=128, num_hidden_layers=22, max_position_embeddings=262144,
        ),
        2 * 166144 * 3072 + 22 * (2 * 3072 * 6144 + 2 * 3072 * 1024 + 3 * 3072 * 10752 + 2 * 3072) + 3072,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_the_full_size_parses_and_has_the_published_parameters(name: str) -> None:
    published, num_parameters = FULL[name]
    form = TYPES[published.config["model_type"]]
    model, seq_len = form.read(Path("config.json"), published.config)
    with torch.device("meta"):
        whole = LoopedGPT(model, seq_len)
    assert sum(weight.numel() for weight in whole.parameters()) == num_parameters
    assert sum(math.prod(rule.shape) for rule in form.rules(model, seq_len)) == num_parameters
    assert form.read(Path("config.json"), form.config(model, seq_len)) == (model, seq_len)


WHOLE: dict[str, Any] = {"vocab_size": 320, "num_loop_layers": 2, "num_loops": 2}


def test_a_run_of_ours_is_written_as_nanbeige(tmp_path: Path, tokenizer: Path) -> None:  # noqa: F811
    """At another loop count, without its gate; what is lost is said."""
    loop = {"final_norm": "passes", "exit": "gate"}
    run = make_run(tmp_path / "run", tokenizer, WHOLE | {"loop": loop, "num_key_value_heads": 2})
    lines = export_run(run=run, out=tmp_path / "out", published="nanbeige", num_loops=3)
    assert lines[1].startswith("NanbeigeForCausalLM, 3 loops, 6 layers deep, float32; 21 tensors mapped, 2 tensors")
    assert lines[2] == "model.loop.exit=gate is dropped: tokens have no exit there, all run all loops"
    report = (tmp_path / "out" / "conversion.txt").read_text()
    assert lines[2] in report and "dropped exit.direction  NanbeigeForCausalLM has no place for it" in report
    again = imported(tmp_path / "out", tmp_path / "again")
    before, tokens = load_trained_model(run, torch.device("cpu")).model.double(), some_tokens()
    assert again.config.num_loops == 3
    assert torch.equal(again.logits(again(tokens)), before.logits(before(tokens, 3)))


UNHELD: dict[str, tuple[str, dict[str, Any], str]] = {
    "prelude": ("nanbeige", {"num_prelude_layers": 1}, "model.num_prelude_layers=1 .* NanbeigeForCausalLM has 0"),
    "injection": ("nanbeige", {"loop": {"injection": "add"}}, "model.loop.injection=add .* has none"),
    "keys": ("nanbeige", {"loop": {"keys": "first"}}, "model.loop.keys=first .* has own"),
    "sandwich": ("nanbeige", {"norm_place": "both"}, "model.norm_place=both .* has before"),
    "weights of loops": ("nanbeige", {"loop": {"per_loop": "lora"}}, "model.loop.per_loop=lora .* has none"),
    "positions": ("nanbeige", {"positions": "learned"}, "model.positions=learned .* has rope"),
    "blocks": (
        "nanbeige",
        {"num_loop_layers": 4, "num_loops": 1, "loop_regulariser": {"block_size": 2, "weight": 1.0}},
        r"model.loop_regulariser.block_size=2",
    ),
    "no gate": (
        "ouro", {"norm_place": "both", "loop": {"final_norm": "passes"}}, "model.loop.exit=none .* has linear",
    ),
    "norms": ("ouro", {"loop": {"final_norm": "passes", "exit": "linear"}}, "model.norm_place=before .* has both"),
    "plain": ("huginn", {}, "model.norm_place=before .* RavenForCausalLM has around"),
    "scale": ("huginn", {"norm_place": "around", "bias": "qk"}, "model.embedding_scale=1.0 .* has 5.65"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNHELD)
def test_what_a_form_cannot_hold_is_named(tmp_path: Path, tokenizer: Path, case: str) -> None:  # noqa: F811
    form, fields, message = UNHELD[case]
    run = make_run(tmp_path / "run", tokenizer, WHOLE | fields)
    with pytest.raises(ValueError, match=message):
        export_run(run=run, out=tmp_path / "out", published=form)
    assert not (tmp_path / "out").exists()


REFUSED: dict[str, tuple[PublishedModel, str]] = {
    "shared keys": (nanbeige(loop_share_kv=True), "loop_share_kv=True of model_type=nanbeige is not supported"),
    "biases": (nanbeige(attention_bias=True), "attention_bias=True of model_type=nanbeige"),
    "rope scaling": (nanbeige(rope_scaling={"type": "yarn", "factor": 4.0}), r"rope scaling \(yarn\)"),
    "no loops": (nanbeige(num_loops=0), "num_loops: Input should be greater than 0"),
    "text": (nanbeige(num_loops="many"), "num_loops: Input should be a valid integer"),
    "heads": (nanbeige(num_key_value_heads=3), "model.num_attention_heads=4 is not divisible"),
    "activation": (nanbeige(hidden_act="gelu"), "hidden_act=gelu is not supported"),
    "quantised": (nanbeige(quantization_config={"bits": 4}), "quantised weights"),
    "no wavelengths": (nanbeige(rope_theta=None), "rope_theta is missing"),
    "another gate": (ouro(exit_gate_type="lookahead"), "exit_gate_type=lookahead is not supported"),
    "windows": (ouro(use_sliding_window=True), "use_sliding_window=True of model_type=ouro"),
    "window layers": (ouro(layer_types=["sliding_attention"] * 2), "layers of sliding_attention are not supported"),
    "another injection": (huginn(injection_type="add"), "injection_type: Input should be 'linear'"),
    "another start": (huginn(state_init="zero"), "state_init: Input should be 'like-init'"),
    "noise in the loop": (huginn(test_time_noise=0.1), "test_time_noise=0.1 of model_type=huginn_raven"),
    "two stacks": (nanbeige(model_type="hrm_text"), "model_type=hrm_text is not supported: its loops are nested"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path: Path, byte_level: Path, case: str) -> None:  # noqa: F811
    published, message = REFUSED[case]
    folder = published.write(tmp_path / "published", byte_level)
    with pytest.raises(ValueError, match=rf"config\.json: {message}") as caught:
        import_model(folder=folder, run=tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_command_knows_every_form(tmp_path: Path, commands: Commands) -> None:
    assert (*FORMATS, "gguf") == convert_checkpoint.FORMATS
    both = ("--run", tmp_path, "--out", tmp_path / "out", "--unroll", "--format", "nanbeige")
    done = commands.run(ROOT / "tools" / "convert_checkpoint.py", "export", *both)
    assert done.returncode == 2 and "not allowed with argument" in done.stderr


# As a user

USED: dict[str, tuple[PublishedModel, str]] = {  # with the rule by which its tokens stop
    "ouro": (ouro(max_position_embeddings=600), "auto:gate:0.6"),
    "huginn": (huginn(block_size=600), "auto:kl:0.05"),
}


@pytest.mark.parametrize("name", USED)
def test_a_published_looped_model_is_a_run_like_any_other(
    tmp_path: Path,
    byte_level: Path,  # noqa: F811
    commands: Commands,
    name: str,
) -> None:
    """All depths of one pass are scored, it is sampled from at any depth, and goes back into its form."""
    published, rule = USED[name]
    folder, run = published.write(tmp_path / "published", byte_level), tmp_path / "run"
    tool, generate = ROOT / "tools" / "convert_checkpoint.py", ROOT / "tools" / "generate.py"
    done = commands.run(tool, "import", "--model", folder, "--run", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{run}: {published.config['model_type']}, " in done.stdout and "logits were not compared" in done.stdout
    wanted = ("--tasks", "variable_assignment_code_depth0", "--num-examples", "2", "--offline", "--num-loops", "1,2,4")
    scored = commands.run(ROOT / "tools" / "eval_depth.py", "--run", run, *wanted)
    assert scored.returncode == 0, scored.stderr
    rows = [json.loads(line) for line in (run / "eval" / "depth.jsonl").read_text().splitlines()]
    assert [row["num_loops"] for row in rows] == [1, 2, 4]
    asked = ("--run", run, "--prompt", "the loop", "--max-new-tokens", "5", "--temperature", "0", "--num-loops")
    for loops in ("2", rule):
        sample = commands.run(generate, *asked, loops)
        assert sample.returncode == 0 and sample.stdout.startswith("the loop"), sample.stderr
    written = commands.run(tool, "export", "--run", run, "--out", tmp_path / "out", "--format", name)
    assert (written.returncode, written.stderr) == (0, "")
    assert f"{published.config['architectures'][0]}, {published.num_loops} loops, " in written.stdout
