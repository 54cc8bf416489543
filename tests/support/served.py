"""A server in this process, in a thread of its own, and a client that speaks HTTP to it over a socket."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

from pretrain.run.trained_model import load_trained_model
from pretrain.serve.__main__ import make_server, parse
from pretrain.serve.application import ModelServer
from pretrain.serve.listening import make_runner


@dataclass
class Client:
    server: ModelServer
    port: int

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body and headers of an answer; JSON is read."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, content, dict(headers or {}))
        response = connection.getresponse()
        text, found = response.read(), dict(response.getheaders())
        connection.close()
        is_json = found.get("Content-Type", "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text.decode(), found

    def complete(self, **body: Any) -> Any:
        status, found, _ = self.ask("POST", "/v1/completions", {"temperature": 0} | body)
        assert status == 200, found
        return found

    def refusal(self, body: Any, path: str = "/v1/completions", headers: Mapping[str, str] | None = None) -> tuple:
        """Status and line of a refusal."""
        status, found, _ = self.ask("POST", path, body, headers)
        assert "\n" not in found["error"]["message"]
        return status, found["error"]["message"]

    def metric(self, name: str) -> float:
        _, text, _ = self.ask("GET", "/metrics")
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"looped_{name} ")))


def pieces(text: str) -> list[Any]:
    """The objects of a stream of server-sent events, which has ended as it should."""
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@contextmanager
def serving(run_dir: Path, *options: str, key: str | None = None) -> Iterator[Client]:
    """A run on a free port of this machine."""
    trained = load_trained_model(run_dir, torch.device("cpu"))
    server = make_server(parse(["--run", str(run_dir), *options]), trained, key)
    loop, listening, ports = asyncio.new_event_loop(), threading.Event(), []

    async def live(over: asyncio.Event) -> None:
        runner = make_runner(server)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        listening.set()
        await over.wait()
        await runner.cleanup()

    over = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(live(over),), daemon=True)
    thread.start()
    assert listening.wait(60)
    try:
        yield Client(server, ports[0])
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)
        loop.close()
