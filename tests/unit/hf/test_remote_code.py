"""Code in the folder of a published model is never run, whatever its files ask for."""

import json
from pathlib import Path

import pytest

from pretrain.hf.importing import import_model
from tests.support.published_loops import huginn, nanbeige, ouro
from tests.unit.hf.test_convert import LLAMA, byte_level, publish  # noqa: F401 - a fixture

LOOPED = {"ouro": ouro(), "huginn": huginn(), "nanbeige": nanbeige()}


@pytest.mark.parametrize("name", ["llama", *LOOPED])
def test_code_beside_the_weights_is_not_run(tmp_path: Path, byte_level: Path, name: str) -> None:  # noqa: F811
    """As these models are published, with classes named in config.json; and a tokenizer that names one too."""
    if name == "llama":
        folder = publish(tmp_path / "model", byte_level, "Llama", LLAMA)
    else:
        folder = LOOPED[name].write(tmp_path / "model", byte_level)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n"
    for module in ("modeling_own", "configuration_own", "tokenization_own"):
        (folder / f"{module}.py").write_text(code)
    classes = {
        "config.json": {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.Own", None]},
    }
    for file, named in classes.items():
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(values | {"auto_map": named}))
    lines = import_model(folder, tmp_path / "run")
    assert lines and (tmp_path / "run" / "tokenizer.json").exists() and not ran.exists()
