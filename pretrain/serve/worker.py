"""The thread in which the model runs: requests come to it from the server, and what becomes of them goes back, a new
token at a time."""

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from pretrain.generation.engine import Continuation, GenerationEngine, Wish
from pretrain.generation.packing import packed_weights
from pretrain.generation.slots import SlotCache
from pretrain.generation.stepper import PassStepper
from pretrain.model.gpt import LoopedGPT


@dataclass(frozen=True, kw_only=True)
class News:
    """What has become of a request since the last one."""

    tokens: tuple[int, ...]
    """New ones."""
    loops: tuple[int, ...]
    """That each of them took."""
    reason: str | None
    """Why it has ended, as of a `Continuation`, or "failed"; None: it goes on."""


@dataclass(kw_only=True)
class Ticket:
    """A request that the model works on."""

    news: "asyncio.Queue[News]" = field(default_factory=asyncio.Queue)
    continuation: Continuation | None = None
    num_told: int = 0
    """Tokens that the server knows of."""


class EngineWorker:
    """Runs from `start` to `close`; its other methods are called in the thread of the server's event loop.

    Args:
        model: on its device, in its precision.
        num_slots: sequences under way at once.
        capacity: positions of a sequence at most.
        num_loops: L at most.
        max_waiting: requests that may wait for a slot.
    """

    def __init__(
        self, model: LoopedGPT, *, num_slots: int, capacity: int, num_loops: int, max_waiting: int
    ) -> None:  # fmt: skip
        self.model, self.num_slots, self.max_waiting = model, num_slots, max_waiting
        loops = num_loops if model.config.num_blocks == 1 else None
        cache = SlotCache(model.config, num_slots=num_slots, capacity=capacity, num_loops=loops)
        device = next(model.parameters()).device
        self._engine = GenerationEngine(PassStepper(model, cache), num_slots=num_slots, device=device)
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        """Under way, by the identity of their continuations; of the worker's thread."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self.num_pending = 0
        """Requests that have not ended."""
        self.is_closing = False
        self.has_failed = False

    @property
    def num_open(self) -> int:
        return min(self.num_pending, self.num_slots)

    @property
    def num_waiting(self) -> int:
        return max(0, self.num_pending - self.num_slots)

    @property
    def is_full(self) -> bool:
        """Whether no more requests may wait."""
        return self.num_pending >= self.num_slots + self.max_waiting

    @property
    def is_working(self) -> bool:
        return not (self.is_closing or self.has_failed)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Give up what is under way and end the thread."""
        self.is_closing = True
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    def add(self, wish: Wish) -> Ticket:
        ticket = Ticket()
        self.num_pending += 1

        def order() -> None:
            ticket.continuation = self._engine.add(wish)
            self._tickets[id(ticket.continuation)] = ticket

        self._orders.put(order)
        return ticket

    def done(self, ticket: Ticket) -> None:
        """The server is through with a request, ended or not: one that has not ended leaves the batch."""
        self.num_pending -= 1

        def order() -> None:
            if ticket.continuation is not None:
                self._engine.cancel(ticket.continuation)
                self._tickets.pop(id(ticket.continuation), None)

        self._orders.put(order)

    async def ask(self, work: Callable[[], Any]) -> Any:
        """The result of other work with the model, between two steps."""
        answer: Future[Any] = Future()

        def order() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(work())
            except Exception as error:  # it is the asker's
                answer.set_exception(error)

        self._orders.put(order)
        return await asyncio.wrap_future(answer)

    def _work(self) -> None:
        try:
            with packed_weights(self.model), torch.inference_mode():
                while self._obey():
                    for continuation in self._engine.step():
                        self._tell(continuation)
        except Exception:  # a bug, or no memory: the server lives on to say so
            traceback.print_exc()
            self.has_failed = True
            for ticket in self._tickets.values():
                self._send(ticket, News(tokens=(), loops=(), reason="failed"))

    def _obey(self) -> bool:
        """Do what has been ordered; wait for an order if there is nothing else to do. Whether to go on."""
        while True:
            try:
                order = self._orders.get(block=self._engine.is_idle)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()

    def _tell(self, continuation: Continuation) -> None:
        ticket = self._tickets[id(continuation)]
        new = slice(ticket.num_told, len(continuation.tokens))
        ticket.num_told = len(continuation.tokens)
        news = News(
            tokens=tuple(continuation.tokens[new]), loops=tuple(continuation.loops[new]), reason=continuation.reason
        )
        self._send(ticket, news)

    def _send(self, ticket: Ticket, news: News) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(ticket.news.put_nowait, news)
        except RuntimeError:  # the loop has ended, and with it those who listened
            self.is_closing = True
