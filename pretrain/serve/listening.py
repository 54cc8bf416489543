"""The life of a server: from listening to a signal."""

import asyncio
import signal
from collections.abc import Callable

from aiohttp import web

from pretrain.serve.application import ModelServer

LAST_WORDS_S = 5.0
"""For what is under way when a signal comes."""
IDLE_S = 75.0
"""Of a connection without a request, or with half the head of one, until it is closed."""


def listen(server: ModelServer, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `say` is told where, once it listens.

    Raises:
        OSError: the address cannot be listened at.
    """
    asyncio.run(_listen(server, host, port, say))


def make_runner(server: ModelServer) -> web.AppRunner:
    """What answers for a server at the addresses that it is given."""
    # a client that goes cancels its handler, and so its place in the batch
    return web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=LAST_WORDS_S,
        keepalive_timeout=IDLE_S,
    )  # fmt: skip


async def _listen(server: ModelServer, host: str, port: int, say: Callable[[str], None]) -> None:
    runner = make_runner(server)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        where, bound = runner.addresses[0][:2]
        say(f"http://{f'[{where}]' if ':' in where else where}:{bound}")
        over = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        await over.wait()
    finally:
        await runner.cleanup()
