"""A headless Chromium that is told what to do over its debugging protocol."""

import asyncio
import base64
import itertools
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMIT_S = 90.0
SAYING = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


class Page:
    """One page, by its socket."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse") -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.said: list[str] = []
        """What the console and the page's own errors said."""

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            is_advice = message.get("params", {}).get("entry", {}).get("level") == "verbose"
            if message.get("method") in SAYING and not is_advice:
                self.said.append(str(message["params"]))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str) -> Any:
        """The value of an expression as soon as it is true."""
        while not (value := await self.run(script)):
            await asyncio.sleep(0.05)
        return value

    async def picture(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


def browse(address: str, folder: Path, visit: Callable[[Page], Awaitable[None]]) -> list[str]:
    """Open an address and let `visit` use the page; what its console said."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,900"]
    command += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            return asyncio.run(asyncio.wait_for(_visit(address, folder, visit), LIMIT_S))
        finally:
            process.kill()


async def _visit(address: str, folder: Path, visit: Callable[[Page], Awaitable[None]]) -> list[str]:
    port_file = folder / "profile" / "DevToolsActivePort"
    while not port_file.exists() or not port_file.read_text().strip():
        await asyncio.sleep(0.05)
    port = port_file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        targets: list[Any] = []
        while not targets:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                targets = [each for each in await response.json() if each["type"] == "page"]
        async with session.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            for domain in ("Runtime", "Log", "Page"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=address)
            await page.until("location.href !== 'about:blank' && document.readyState === 'complete'")
            await visit(page)
            return page.said
