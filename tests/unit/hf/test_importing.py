"""What an import refuses is said in the words of its user: files, settings and commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.hf.importing import import_model
from tests.unit.hf.test_convert import LLAMA, byte_level, publish, saved_weights  # noqa: F401 - byte_level is a fixture

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def folder(tmp_path: Path, byte_level: Path) -> Path:  # noqa: F811
    return publish(tmp_path / "published", byte_level, "Llama", LLAMA)


def refused(folder: Path, message: str) -> None:
    run = folder.parent / "run"
    with pytest.raises(ValueError, match=message):
        import_model(folder=folder, run=run)
    assert not run.exists()


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_head_that_is_not_the_tied_one(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    refused(folder, r"config\.json ties the head to the embedding, but lm_head\.weight differs from it")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs(folder: Path, name: str) -> None:
    (folder / name).write_bytes(POINTER)
    refused(folder, rf"{name}: is a Git LFS pointer, not the file: fetch it with git lfs pull")


def test_a_tokenizer_above_the_vocabulary(folder: Path) -> None:
    weights = folder / "model.safetensors"
    rows = {
        name: tensor[:200] if tensor.shape[0] == LLAMA["vocab_size"] else tensor
        for name, tensor in load_file(weights).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in rows.items()}, weights)
    change_config(folder, vocab_size=200)
    refused(
        folder, r"its tokenizer has ids up to \d+, its config\.json 200 rows of vocabulary: .* with --no-new-tokens"
    )


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_torch_files_are_read_but_never_unpickled(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**stored, "evil": Malice()}, folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin: holds more than tensors")
    torch.save(stored, folder / "pytorch_model.bin")
    run = folder.parent / "run"
    import_model(folder=folder, run=run)
    assert torch.equal(saved_weights(run)["weights/final_norm.weight"], stored["model.norm.weight"])
