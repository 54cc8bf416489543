"""Rows of what hooks measure while a run trains, lines of `<run>/diagnostics.jsonl`: whose, of which step, and numbers
under names of their own."""

from collections.abc import Mapping
from typing import Any

from pretrain.rows.identity import RunIdentity

DIAGNOSTICS = "diagnostics.jsonl"
"""In the run directory."""


def diagnostics_row(identity: RunIdentity, step: int, numbers: Mapping[str, float]) -> dict[str, Any]:
    """A row; the numbers of a family are named alike, as "state_norm.loop3"."""
    return {"run_id": identity.run_id, "config": identity.config, "step": step, **numbers}
