"""What a checkpoint of another version says of its model."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.saved_model import SavedModel

GOLDEN = Path(__file__).parents[2] / "golden" / "pretrained" / "checkpoints"


def old_meta() -> dict[str, Any]:
    """Of a checkpoint from before `saved_model` existed."""
    return json.loads((GOLDEN / "step-00000004" / "checkpoint.json").read_text())["body"]["meta"]


@pytest.mark.parametrize("is_old", [True, False])
def test_keys_that_are_gone_are_passed_over(is_old: bool) -> None:
    meta = old_meta()
    wanted = SavedModel.read(meta)
    if not is_old:
        meta = {"saved_model": wanted.model_dump(mode="json")}
    whole = meta["config" if is_old else "saved_model"]
    whole["gone"] = {"a": 1}
    whole["model"]["loop_regulariser"]["gone"] = 2
    (whole["data"]["sources"] if is_old else whole["tasks"])[0]["gone"] = 3
    assert SavedModel.read(meta) == wanted


def test_what_later_versions_refuse_does_not_hide_an_old_model() -> None:
    meta = old_meta()
    wanted = SavedModel.read(meta)
    meta["config"]["checkpoint"] |= {"every": 500, "keep_every": 750}
    meta["config"]["optimizer"]["name"] = "of another version"
    assert SavedModel.read(meta) == wanted


def test_a_shape_that_this_version_does_not_know_is_not_guessed_at() -> None:
    meta = old_meta()
    meta["config"]["model"]["norm_twist"] = 3
    with pytest.raises(ValueError, match=r"^the checkpoint's model\.norm_twist is unknown here: use the version"):
        SavedModel.read(meta)
