"""The way of a token through the layers: prelude, L passes over the shared block, coda. Numbers only, no torch.

A layer of the block is applied once in every pass, so layers and their applications are counted apart. Applications are
numbered from 0 in the order in which a token meets them: prelude, pass after pass, coda. Keys and values are cached by
this number, on every pipeline stage. One of P stages holds 1/P of the block and does 1/P of every pass. In a
block-regularised model pass i goes through block i, which has weights of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pretrain.model.config import ModelSection


class Application(NamedTuple):
    """One application of a layer to a token."""

    number: int
    """From 0, in the order in which a token meets the layers."""
    loop: int | tuple[int, ...] | None
    """The pass it is part of, from 0; None in prelude and coda. Where tokens in different passes share an application
    of a layer, in generation, that of each token; `number` is then that of the layer in the first pass."""
    source: int | None = None
    """The application whose keys and values it attends to, where these are shared (`model.loop.keys`): an earlier one,
    or itself, which computes them; None: its own, which no other sees."""
    window: int | None = None
    """Newest tokens whose keys and values of its own it attends to beside those of `source`; None: none."""

    @property
    def computes_keys(self) -> bool:
        return self.source in (None, self.number) or self.window is not None

    @property
    def newest_keys(self) -> int:
        """The application that holds the keys and values that this one has come by for its own token."""
        return self.number if self.source is None or self.computes_keys else self.source


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Which part of the model a pipeline rank holds: stage `index` of `count`, each with 1/count of every block."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


WHOLE = Stage()


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """The layers that a stage holds, and when it applies them."""

    config: ModelSection
    stage: Stage = WHOLE

    @property
    def num_prelude_layers(self) -> int:
        return self.config.num_prelude_layers if self.stage.is_first else 0

    @property
    def num_coda_layers(self) -> int:
        return self.config.num_coda_layers if self.stage.is_last else 0

    @property
    def num_pass_layers(self) -> int:
        """Layers of one pass that the stage holds."""
        return self.config.pass_layers // self.stage.count

    def layers(self) -> dict[str, list[int]]:
        """Numbers of the layers that the stage holds, by part of the model; each has weights of its own."""
        return {
            "prelude": list(range(self.num_prelude_layers)),
            "loop": [number for block in range(self.config.num_blocks) for number in self.block(block)],
            "coda": list(range(self.num_coda_layers)),
        }

    def num_applications(self, num_loops: int | None = None) -> int:
        """Applications of these layers to a token, at L = `num_loops` (the configuration's by default)."""
        looped = self.config.num_passes(num_loops) * self.num_pass_layers
        return self.num_prelude_layers + looped + self.num_coda_layers

    def segment_size(self, num_passes: int) -> int:
        """Passes that are computed again together where n in a row are, k layers each: kept are n/s states that enter
        a segment, and for a time s·k that enter its layers, which is least of all at s = √(n/k). One on each of several
        stages, as what enters the next pass there comes from another stage."""
        return 1 if self.stage.count > 1 else max(1, round((num_passes / self.num_pass_layers) ** 0.5))

    def block(self, number: int) -> range:
        """The layers of block `number` that the stage holds, by their numbers in the whole loop part."""
        first = number * self.config.pass_layers + self.stage.index * self.num_pass_layers
        return range(first, first + self.num_pass_layers)

    def in_prelude(self) -> Iterator[tuple[int, Application]]:
        """Layers of the prelude on the stage, with their applications, in order."""
        return ((layer, Application(layer, None)) for layer in range(self.num_prelude_layers))

    def in_loop(self, loop: int | tuple[int, ...]) -> Iterator[tuple[int, Application]]:
        """The stage's part of a pass, or of those of several tokens: numbers of the layers, with their applications, in
        order."""
        config = self.config
        if not isinstance(loop, int):
            first = config.num_prelude_layers + self.stage.index * self.num_pass_layers
            none = all(config.keys_of(each) != each for each in loop)
            numbered = enumerate(self.block(0), start=first)
            return ((layer, Application(number, loop, -1 if none else number)) for number, layer in numbered)
        first = config.num_prelude_layers + loop * config.pass_layers + self.stage.index * self.num_pass_layers
        block = self.block(loop if config.num_blocks > 1 else 0)
        if config.loop.keys == "own":
            return ((layer, Application(first + offset, loop)) for offset, layer in enumerate(block))
        back = (loop - config.keys_of(loop)) * config.pass_layers
        numbers, window = range(first, first + len(block)), config.window_of(loop)
        return ((layer, Application(n, loop, n - back, window)) for layer, n in zip(block, numbers, strict=True))

    def in_coda(self, num_passes: int) -> Iterator[tuple[int, Application]]:
        """Layers of the coda on the stage, with their applications after `num_passes` passes, in order."""
        first = self.config.num_prelude_layers + num_passes * self.config.pass_layers
        return ((layer, Application(first + layer, None)) for layer in range(self.num_coda_layers))
