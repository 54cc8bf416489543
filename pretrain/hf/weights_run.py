"""A run directory with only weights, made by import and surgery and accepted by sampling, evaluation, fine-tuning and
`checkpoint.init_from`."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pretrain.checkpoint.run import save_weights
from pretrain.config.read import resolved_yaml
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf.report import Fate, write_report
from pretrain.model.weights import stage_weights


def write_run(
    directory: Path, saved: SavedModel, tokenizer: bytes, weights: Mapping[str, Tensor], fates: list[Fate], title: str
) -> str:
    """Write configuration, tokenizer, checkpoint of step 0 and report; returns the report's line with the totals.

    Args:
        directory: new run directory.
        saved: description of the model; its tokenizer is a file in `directory`, with content `tokenizer`.
        tokenizer: that content.
        weights: every tensor of the model by name.
        fates: every tensor's line of the report.
        title: first line of the report.

    Raises:
        OSError: writing failed; the directory is removed.
    """
    names = set(stage_weights(saved.model, saved.seq_len))
    assert names == set(weights), f"missing or unexpected weights: {sorted(names ^ set(weights))}"
    meta = {"saved_model": saved.model_dump(mode="json"), "tokenizer_sha256": Tokenizer.from_bytes(tokenizer).sha256}
    directory.mkdir(parents=True)
    try:
        (directory / Path(saved.tokenizer).name).write_bytes(tokenizer)
        (directory / "config.yaml").write_text(resolved_yaml(saved), encoding="utf-8")
        totals = write_report(directory, title, fates)
        save_weights(directory, {name: tensor.float() for name, tensor in weights.items()}, meta)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return totals
