"""The published looped models that can be read and written, by name; a new one is a file here and a line."""

from pretrain.hf.loop_formats.format import LoopFormat
from pretrain.hf.loop_formats.huginn import Huginn
from pretrain.hf.loop_formats.nanbeige import Nanbeige
from pretrain.hf.loop_formats.ouro import Ouro

FORMATS: dict[str, LoopFormat] = {"nanbeige": Nanbeige(), "ouro": Ouro(), "huginn": Huginn()}
"""By the name that `--format` takes."""
TYPES = {published.model_type: published for published in FORMATS.values()}
NOT_HELD = {
    "hrm_text": "it loops one block of layers inside the loop of another, each with weights of its own (L_module in "
    "H_module), and gates what attention gives; the loop here has one block, and attention no gate",
}
"""model_type -> what this model lacks."""


def format_of(model_type: str) -> LoopFormat | None:
    """The form of a model_type, if it is a published looped model."""
    return TYPES.get(model_type)
