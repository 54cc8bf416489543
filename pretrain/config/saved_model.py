"""What a checkpoint says of its model: all that a tool needs to run, export or train it, whatever made the checkpoint.

Pretraining, fine-tuning and import store it as `meta["saved_model"]`. Checkpoints from before it existed store a whole
pretraining configuration as `meta["config"]`, made up by fine-tuning and import.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from pretrain.config.data import SourceSection
from pretrain.config.run import Precision, RunConfig
from pretrain.model.config import ModelSection
from pretrain.schema.section import Section, first_problem

Family = Literal["looped", "baseline", "regularised"]
"""Kind of model, as the scaling plot tells them apart."""


class SavedModel(Section):
    run: str
    """Name of the run that made the checkpoint."""
    model: ModelSection
    """Shape of the model; its `num_loops` is the default of every tool."""
    seq_len: int
    """Longest sequence it was trained on, in tokens."""
    precision: Precision
    """Type of weights and activations in training; tools use the same."""
    tokenizer: str
    """Its file, or "symbols:...", as the run was given it; the run directory has a copy."""
    max_loops: int
    """Largest loop count that training could draw."""
    tasks: tuple[SourceSection, ...] = ()
    """Reasoning tasks that it was pretrained on, with their difficulty: what it is evaluated on by default."""

    @classmethod
    def of(cls, config: RunConfig) -> "SavedModel":
        """The model that a pretraining run saves."""
        return cls(
            run=config.run.name,
            model=config.model,
            seq_len=config.train.seq_len,
            precision=config.train.precision,
            tokenizer=config.data.tokenizer,
            max_loops=config.max_loops,
            tasks=tuple(source for source in config.data.sources if source.task is not None),
        )

    @classmethod
    def read(cls, meta: Mapping[str, Any]) -> "SavedModel":
        """The model of a checkpoint, from its `meta`.

        Raises:
            ValueError: it does not say what the model is, or says it with a key that this version does not have.
        """
        try:
            return cls._of_meta(meta)
        except (KeyError, TypeError, AttributeError):
            raise ValueError("the checkpoint does not say what its model is: its meta has no configuration") from None
        except ValidationError as error:
            raise ValueError(f"the checkpoint describes a model that cannot be: {first_problem(error)}") from None

    @classmethod
    def _of_meta(cls, meta: Mapping[str, Any]) -> "SavedModel":
        whole = meta["saved_model"] if "saved_model" in meta else meta["config"]
        unknown = sorted(whole["model"].keys() - ModelSection.model_fields.keys() - ModelSection.renamed.keys())
        if unknown:
            raise ValueError(f"the checkpoint's model.{unknown[0]} is unknown here: use the version that wrote it")
        if "saved_model" in meta:
            return cls.read_saved(whole)
        parts = {"run": whole["run"], "model": whole["model"]}
        for section, keys in (("train", ("seq_len", "precision", "loop_sampling")), ("data", ("tokenizer", "sources"))):
            parts[section] = {key: value for key, value in whole[section].items() if key in keys}
        return cls.of(RunConfig.read_saved(parts))  # without what later versions may refuse, and the model is not of

    @property
    def family(self) -> Family:
        """Looped if training applies the block more than once, regularised if blocks are pulled together, else
        baseline."""
        if self.max_loops > 1:
            return "looped"
        return "regularised" if self.model.loop_regulariser.weight else "baseline"


def require_vocabulary(model: ModelSection, tokenizer: str, num_tokens: int) -> None:
    """Raise a ValueError unless the model has a row for every token of the tokenizer of this name."""
    if num_tokens > model.vocab_size:
        raise ValueError(
            f"{tokenizer} has {num_tokens} tokens, more than model.vocab_size={model.vocab_size}: raise the latter"
        )
