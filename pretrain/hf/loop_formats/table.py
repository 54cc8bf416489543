"""The published looped models that can be read and written, by name; a new one is a file here and a line."""

from pretrain.hf.loop_formats.format import LoopFormat
from pretrain.hf.loop_formats.huginn import Huginn
from pretrain.hf.loop_formats.nanbeige import Nanbeige
from pretrain.hf.loop_formats.ouro import Ouro

FORMATS: dict[str, LoopFormat] = {"nanbeige": Nanbeige(), "ouro": Ouro(), "huginn": Huginn()}
"""By the name that `--format` takes."""
TYPES = {published.model_type: published for published in FORMATS.values()}
NOT_HELD = {
    "hrm_text": "its loops are nested. Two blocks with weights of their own (L_module, H_module) take turns, L_cycles "
    "passes of the one to a pass of the other, H_cycles times over, on two states, each of which enters the other's "
    "passes, where model.loop has one block and one state; its attention ends in a gate (gate_proj), and with "
    "prefix_lm a prompt is read in both directions"
}
"""model_type -> what this model lacks."""


def format_of(model_type: str) -> LoopFormat | None:
    """The form of a model_type, if it is a published looped model."""
    return TYPES.get(model_type)
