"""What looks at a run while it trains, as configuration: `train.hooks`."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from pretrain.schema.plugin import PluginName
from pretrain.schema.section import Section


class HookSection(Section):
    """A hook, or its name alone."""

    alone: ClassVar[str | None] = "name"

    name: Literal["loop_diagnostics"] | PluginName
    """loop_diagnostics (norms, similarity, rank and gain of each loop), or one of your own file: my_module:MyHook."""
    every: int | None = Field(default=None, gt=0)
    """Steps between its calls. Default: the hook's own, 100 for loop_diagnostics."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Settings of the hook; its class documents the keys."""
