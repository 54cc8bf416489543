"""A run of weights alone, as import and surgery make it. Sampling, evaluation, fine-tuning and `checkpoint.init_from`
take it so."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pretrain.checkpoint.run import save_weights
from pretrain.config.model import ModelSection
from pretrain.config.read import resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.hf.report import Fate, write_report
from pretrain.model.weights import stage_weights


def run_config(directory: Path, model: ModelSection, seq_len: int, precision: str, tokenizer_name: str) -> RunConfig:
    """The configuration of such a run: its model and tokenizer, the defaults for the rest.

    Args:
        directory: of the run.
        model: shape of the model.
        seq_len: longest sequence, in tokens.
        precision: train.precision.
        tokenizer_name: file name of the tokenizer in `directory`.
    """
    return RunConfig.model_validate(
        {
            "run": {"name": directory.name, "root": str(directory.parent)},
            "model": model.model_dump(),
            "data": {"tokenizer": str(directory / tokenizer_name)},
            "train": {"seq_len": seq_len, "precision": precision},
        }
    )


def write_run(
    directory: Path, config: RunConfig, tokenizer: bytes, weights: Mapping[str, Tensor], fates: list[Fate], title: str
) -> str:
    """Write configuration, tokenizer, checkpoint of step 0 and report; all or nothing.

    Args:
        directory: of the run, new.
        config: as of `run_config`.
        tokenizer: bytes of its file.
        weights: every tensor of the model by name.
        fates: what became of every tensor.
        title: first line of the report.

    Returns:
        The line of totals.

    Raises:
        OSError: writing failed; nothing stays.
    """
    names = set(stage_weights(config.model, config.train.seq_len))
    assert names == set(weights), f"weights that are missing or too many: {sorted(names ^ set(weights))}"
    meta = {"config": config.model_dump(mode="json"), "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest()}
    directory.mkdir(parents=True)
    try:
        (directory / Path(config.data.tokenizer).name).write_bytes(tokenizer)
        (directory / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")
        totals = write_report(directory, title, fates)
        save_weights(directory, {name: tensor.float() for name, tensor in weights.items()}, meta)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return totals
