"""Keys and values of sequences that are generated together, each in a slot of its own, in memory allocated once.

A layer has one tensor of keys and one of values, [loops · slots, groups, columns, width], for those loops that compute
any (`model.loop.keys`); so rows in different loops are read and written by one index. A token's column is its position:
every row continues at its own length, is padded on the right, and sees no more than its own. Windows
(`model.loop.keys_window`) are rings of w columns, position p in column p mod w. Columns are added as rows grow.

Before each call of the model, `place` says which slots its rows are and where they continue. Overwritten in place, so
not for training. Legend: b rows, s new positions, g groups of key/value heads, e head width, w window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.config import ModelSection
from pretrain.model.kept_keys import KeysValues
from pretrain.model.kernels.window_attention import newest_visible
from pretrain.model.layers import KeyValueCache, attend
from pretrain.model.loop.recurrence import Application

Loop = int | tuple[int, ...] | None
FIRST_COLUMNS = 64
"""Allocated at first."""
DENSE = 0.6
"""Share of the columns read that have to be rows' own for one call of attention over all of them to be as fast on a CPU
as one a row; measured: 0.9x to 1.9x."""


@dataclass(kw_only=True)
class _Rows:
    """The rows of a call."""

    numbers: Sequence[int]
    """Slots."""
    slots: Tensor
    """[b] the same."""
    first: int | None
    """The first slot where they are one after the other."""
    lengths: Sequence[int]
    """Positions that each has already."""
    starts: Tensor
    """[b] the same."""
    ends: Tensor
    """[b] those that it has then; what comes after is padding."""
    places: Tensor
    """[b, s] columns of the new positions."""
    start: int | None
    """That of all of them, where it is the same."""
    stop: int
    """Columns that any of them sees."""
    visible: Tensor | None
    """[b, 1, s, stop] True where a query may look; None: causal, where all rows begin, or everything."""
    indices: dict[Loop, tuple[slice | Tensor, slice | Tensor, Tensor | None]] = field(default_factory=dict)
    """Of each loop: where rows read, where they write, and which of them do (None: all)."""
    orders: dict[Loop, "_Order | None"] = field(default_factory=dict)
    """Of each loop: how rows lie in slots one after the other; None: they do not."""

    @property
    def begin(self) -> bool:
        """Whether all rows begin, with more than one position."""
        return self.start == 0 and self.places.shape[1] > 1 and self.visible is None


@dataclass(kw_only=True)
class _Order:
    """Rows whose keys lie in slots one after the other."""

    where: slice
    """The slots."""
    by_slot: Tensor
    """[b] rows in their order."""
    back: Tensor
    """[b] places of the rows in it."""
    visible: Tensor | None
    """As of the rows, in it."""


class SlotCache(KeyValueCache):
    """Args:
    config: of the model.
    num_slots: sequences at most.
    capacity: tokens of a sequence at most.
    num_loops: L at most. Default: model.num_loops.
    forgets: whether positions of a row are given up again; windows then keep all positions.
    """

    def __init__(
        self, config: ModelSection, *, num_slots: int, capacity: int, num_loops: int | None = None,
        forgets: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_slots, self.capacity = num_slots, capacity
        self._config, self._forgets = config, forgets
        self._columns = min(FIRST_COLUMNS, capacity)
        self.num_passes = config.num_passes(num_loops)
        held = sorted({config.keys_of(loop) for loop in range(self.num_passes)})
        self._held = [held.index(config.keys_of(loop)) for loop in range(self.num_passes)]
        self._num_windows = sum(config.window_of(loop) is not None for loop in range(self.num_passes))
        self._stores: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._rows: _Rows | None = None

    @property
    def length(self) -> int:
        """Nothing is masked by the length of the cache: rows have lengths of their own."""
        return 0

    @property
    def num_held(self) -> int:
        """Numbers that there is room for now."""
        return sum(each.numel() for pair in self._stores.values() for each in pair)

    def place(
        self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int], *, device: torch.device,
        visible: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Say what the rows of the next calls are.

        Args:
            slots: of each row.
            starts: positions that each has already.
            counts: of its new positions; rows with fewer than others are padded on the right.
            device: of the model.
            visible: [b, 1, s, columns] which columns each new position sees, where that is not those up to its own.
        """
        num_new = max(counts)
        stop = max(starts) + num_new
        assert stop <= self.capacity, f"{stop} positions in a slot of {self.capacity}"
        start = starts[0] if len(set(starts)) == 1 else None
        first = slots[0] if list(slots) == list(range(slots[0], slots[0] + len(slots))) else None
        begins = torch.tensor(starts, device=device)
        places = begins[:, None] + torch.arange(num_new, device=device)
        if visible is None and (start is None or (start and num_new > 1)):
            visible = (torch.arange(stop, device=device) <= places[..., None])[:, None]
        self._rows = _Rows(
            numbers=slots, slots=torch.tensor(slots, device=device), first=first, lengths=starts, starts=begins,
            ends=begins + torch.tensor(counts, device=device), places=places, start=start, stop=stop, visible=visible,
        )  # fmt: skip
        if stop > self._columns:
            self._grow(stop)

    def attend(
        self, application: Application, queries: Tensor, computed: KeysValues | None, mask: Tensor | None
    ) -> Tensor:
        rows = self._rows
        assert rows is not None, "place says which rows these are"
        if computed is not None and application.window is not None:
            return self._attend_window(rows, application, queries, computed)
        key = self._key(application)
        if computed is not None:
            self._write(rows, key, application.loop, computed)
        if rows.begin:
            seen = self._read(rows, key, application.loop) if computed is None else computed
            return attend(queries, *seen, None)
        if queries.shape[2] > 1:
            return attend(queries, *self._read(rows, key, application.loop), rows.visible)
        if queries.device.type == "cpu" and (rows.visible is not None or isinstance(application.loop, tuple)):
            order = self._order(rows, application.loop)
            if order is None:
                return self._attend_each(rows, key, application.loop, queries)
            keys, values = (each[order.where, :, : rows.stop] for each in self._stores[key])
            return _attend_one(queries[order.by_slot], keys, values, order.visible)[order.back]
        return _attend_one(queries, *self._read(rows, key, application.loop), rows.visible)

    def share(self, slots: Sequence[int], positions: Sequence[int], done: int, num_passes: int) -> None:
        """Give rows, at one position each, the keys and values of the last of `done` loops in those up to `num_passes`
        that would compute some."""
        source, later = done - 1, range(done, num_passes)
        targets = sorted({self._held[loop] for loop in later if self._config.keys_of(loop) == loop})
        if not targets and not self._num_windows:
            return
        device = next(iter(self._stores.values()))[0].device
        at, columns = torch.tensor(slots, device=device), torch.tensor(positions, device=device)
        for (part, number), pair in self._stores.items():
            if part == "loop":
                for each in pair:
                    newest = each[at + self._held[source] * self.num_slots, :, columns]
                    for target in targets:
                        each[at + target * self.num_slots, :, columns] = newest
            elif part == "window":
                # in its first loop a token has no window, but the keys that all loops see
                others = self._stores["loop", number] if source == 0 else pair
                for each, other in zip(pair, others, strict=True):
                    found = columns if source == 0 else columns % other.shape[2]
                    newest = other[at + max(source - 1, 0) * self.num_slots, :, found]
                    for target in (loop - 1 for loop in later):
                        each[at + target * self.num_slots, :, columns % each.shape[2]] = newest

    def move(self, source: int, target: int, length: int) -> None:
        """Let the row of a slot, of `length` positions, be in another."""
        for (part, _), pair in self._stores.items():
            for each in pair:
                by_slot, end = each.unflatten(0, (-1, self.num_slots)), each.shape[2] if part == "window" else length
                by_slot[:, target, :, :end] = by_slot[:, source, :, :end]

    def _key(self, application: Application) -> tuple[str, int]:
        """Which layer: outside the loop by the application's number, inside by that in the first loop."""
        loop = application.loop
        if loop is None:
            return "outside", application.number
        return "loop", application.number - (loop * self._config.pass_layers if isinstance(loop, int) else 0)

    def _store(self, key: tuple[str, int], like: Tensor) -> tuple[Tensor, Tensor]:
        if key not in self._stores:
            num = {"outside": 1, "loop": max(self._held) + 1, "window": self._num_windows}[key[0]]
            window = self._config.loop.keys_window
            columns = self._columns if key[0] != "window" or self._forgets else window
            shape = (num * self.num_slots, like.shape[1], columns, like.shape[3])
            self._stores[key] = like.new_zeros(shape), like.new_zeros(shape)  # what is masked has to be finite
        return self._stores[key]

    def _grow(self, stop: int) -> None:
        self._columns = min(self.capacity, max(stop, 2 * self._columns))
        for key, pair in self._stores.items():
            if key[0] != "window" or self._forgets:
                missing = self._columns - pair[0].shape[2]
                self._stores[key] = (F.pad(pair[0], (0, 0, 0, missing)), F.pad(pair[1], (0, 0, 0, missing)))

    def _indices(self, rows: _Rows, loop: Loop) -> tuple[slice | Tensor, slice | Tensor, Tensor | None]:
        """Where rows read their keys, where they write them, and which of them do."""
        if loop in rows.indices:
            return rows.indices[loop]
        if isinstance(loop, tuple):
            device = rows.slots.device
            offsets = torch.tensor([self._held[each] * self.num_slots for each in loop], device=device)
            reads = rows.slots + offsets
            own = [row for row, each in enumerate(loop) if self._config.keys_of(each) == each]
            some = None if len(own) == len(loop) else torch.tensor(own, dtype=torch.int64, device=device)
            found = reads, reads if some is None else reads[some], some
        else:
            offset = 0 if loop is None else self._held[loop] * self.num_slots
            reads = rows.slots + offset
            if rows.first is not None:
                reads = slice(rows.first + offset, rows.first + offset + len(rows.slots))
            found = reads, reads, None
        rows.indices[loop] = found
        return found

    def _order(self, rows: _Rows, loop: Loop) -> _Order | None:
        """How all rows can attend in one call over their keys where they lie; None if these are not together, or most
        of what it would read is padding."""
        if loop not in rows.orders:
            held = {0 if each is None else self._held[each] for each in (loop if isinstance(loop, tuple) else (loop,))}
            first, num = min(rows.numbers), len(rows.numbers)
            is_dense = sum(rows.lengths) + num >= DENSE * num * rows.stop
            rows.orders[loop] = None
            if len(held) == 1 and is_dense and sorted(rows.numbers) == list(range(first, first + num)):
                by_slot, start = rows.slots.argsort(), held.pop() * self.num_slots + first
                rows.orders[loop] = _Order(
                    where=slice(start, start + num), by_slot=by_slot, back=rows.slots - first,
                    visible=None if rows.visible is None else rows.visible[by_slot],
                )  # fmt: skip
        return rows.orders[loop]

    def _write(self, rows: _Rows, key: tuple[str, int], loop: Loop, computed: KeysValues) -> None:
        _, where, some = self._indices(rows, loop)
        num_new = computed.keys.shape[2]
        places = rows.places if some is None else rows.places[some]
        for ours, new in zip(self._store(key, computed.keys), computed, strict=True):
            chosen = new if some is None else new[some]
            if isinstance(where, slice) and rows.start is not None:
                ours[where, :, rows.start : rows.start + num_new] = chosen
            else:
                slots = torch.arange(where.start, where.stop, device=new.device) if isinstance(where, slice) else where
                ours[slots[:, None], :, places] = chosen.transpose(1, 2)

    def _read(self, rows: _Rows, key: tuple[str, int], loop: Loop) -> tuple[Tensor, Tensor]:
        """Keys and values [b, g, stop, e] of the rows; where they are in slots one after the other, without a copy."""
        where, *_ = self._indices(rows, loop)
        keys, values = (each[:, :, : rows.stop] for each in self._stores[key])
        if isinstance(where, slice):
            return keys[where], values[where]
        return keys.index_select(0, where), values.index_select(0, where)

    def _attend_each(self, rows: _Rows, key: tuple[str, int], loop: Loop, queries: Tensor) -> Tensor:
        """Attention of one query a row, [b, h, 1, e], each over its own keys where they lie: on a CPU calls cost less
        than to bring them together, and there is no padding."""
        keys, values = self._stores[key]
        loops = loop if isinstance(loop, tuple) else (loop,) * len(rows.numbers)
        mixed = []
        for query, slot, length, each in zip(queries.split(1), rows.numbers, rows.lengths, loops, strict=True):
            at = slot if each is None else slot + self._held[each] * self.num_slots
            own = slice(at, at + 1), slice(None), slice(length + 1)
            mixed.append(_attend_one(query, keys[own], values[own], None))
        return torch.cat(mixed)

    def _attend_window(self, rows: _Rows, application: Application, queries: Tensor, computed: KeysValues) -> Tensor:
        loop, window = application.loop, application.window
        assert isinstance(loop, int) and window is not None, "rows with windows share no application with others"
        key, offset = ("window", self._key(application)[1]), (loop - 1) * self.num_slots
        at, width = rows.slots + offset, computed.keys.shape[2]
        store = self._store(key, computed.keys)
        if self._forgets:
            for ours, new in zip(store, computed, strict=True):
                ours[at[:, None], :, rows.places] = new.transpose(1, 2)
            seen, visible = [each[at, :, : rows.stop] for each in store], rows.visible
            if visible is None:
                columns = torch.arange(rows.stop, device=at.device)
                visible = (columns <= rows.places[..., None])[:, None]
            return attend(queries, seen[0], seen[1], newest_visible(visible, window))
        ring = torch.arange(window, device=at.device)
        if rows.begin:
            mixed = attend(queries, *computed, None, window)
        else:
            last = rows.starts[:, None] - 1
            positions = torch.cat((last - (last - ring) % window, rows.places), dim=1)[:, None]  # [b, 1, w + s]
            back = rows.places[..., None] - positions
            visible = ((positions >= 0) & (back >= 0) & (back < window))[:, None]
            seen = [torch.cat((ours[at], new), dim=2) for ours, new in zip(store, computed, strict=True)]
            mixed = attend(queries, seen[0], seen[1], visible)
        last = rows.ends[:, None] - 1
        newest = last - (last - ring) % window - rows.starts[:, None]  # of the new ones that a column holds then
        taken = newest.clamp(0, width - 1)[:, None, :, None].expand(-1, computed.keys.shape[1], -1, queries.shape[3])
        for ours, new in zip(store, computed, strict=True):
            ours[at] = torch.where((newest >= 0)[:, None, :, None], new.gather(2, taken), ours[at])
        return mixed


def _attend_one(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of one query a row, [b, h, 1, e]; the heads of a group are the queries of its keys, which are read once
    so."""
    heads = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])  # [b, g, h/g, e]
    return F.scaled_dot_product_attention(heads, keys, values, attn_mask=visible).reshape(queries.shape)
