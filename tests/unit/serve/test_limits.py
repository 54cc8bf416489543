"""A server under clients that hold it up, a model that fails, and its end: what waits is given up, and said."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from pretrain.serve import listening
from tests.support.served import Client, serving
from tests.support.text_runs import save_text_run
from tests.unit.serve.test_serve import COMPLETIONS, hold, wait_until

LENS = "/v1/lens"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def client(run_dir: Path) -> Iterator[Client]:
    with serving(run_dir, "--batch", "1", "--max-waiting", "1", "--max-loops", "4") as client:
        yield client


@contextmanager
def standing_still(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[HTTPConnection]]:
    """A stream during whose first step the model stands still, until the end."""
    stands, gate, step = threading.Event(), threading.Event(), client.server.worker._engine.step
    monkeypatch.setattr(client.server.worker._engine, "step", lambda: (stands.set(), gate.wait(60), step())[2])
    held = [hold(client)]
    assert stands.wait(60)
    try:
        yield held
    finally:
        gate.set()
        for connection in held:
            connection.close()


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", LENS])
def test_a_body_that_does_not_come_is_given_up(client: Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.server, "timeout_s", 0.05)
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as slow:
        slow.sendall(f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{{"prompt"'.encode())
        said = slow.recv(65536).decode()
    assert said.startswith("HTTP/1.1 408 ") and "the body has not come after 0.05 seconds" in said
    monkeypatch.setattr(client.server, "timeout_s", 60)
    assert client.complete(prompt="the", max_tokens=1) and client.server.counts.requests[path, 408] == 1


@pytest.mark.parametrize("head", [b"", b"POST /v1/compl"], ids=["nothing", "half a head"])
def test_a_connection_without_a_request_is_closed(run_dir: Path, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "IDLE_S", 0.05)
    with serving(run_dir) as client, socket.create_connection(("127.0.0.1", client.port), timeout=60) as idle:
        idle.sendall(head)
        assert idle.recv(1) == b""


def test_a_client_that_does_not_read_its_stream_keeps_no_place(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece names the model: 60 of them are more than sockets hold back."""
    with serving(run_dir, "--batch", "1", "--name", "k" * 100_000) as client:
        monkeypatch.setattr(client.server, "timeout_s", 0.5)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            deaf.connect(("127.0.0.1", client.port))
            body = b'{"prompt": "the", "stream": true, "temperature": 0, "max_tokens": 60}'
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            deaf.sendall(head.encode() + body)
            wait_until(lambda: client.server.worker.num_pending == 1)
            wait_until(lambda: client.server.counts.new_tokens > 0)
            wait_until(lambda: client.server.worker.num_pending == 0)
            assert client.server.counts.new_tokens < 60  # it stood where nobody read on
            assert client.complete(prompt="the", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_the_lens_waits_no_longer_than_an_answer_and_is_refused_when_all_places_are_taken(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing_still(client, monkeypatch) as held:
        monkeypatch.setattr(client.server, "timeout_s", 0.05)
        assert client.refusal({"prompt": "the"}, LENS) == (504, "not done after 0.05 seconds")
        monkeypatch.setattr(client.server, "timeout_s", 60)
        held.append(hold(client))
        assert client.refusal({"prompt": "the"}, LENS) == (429, "1 requests are waiting already: try again later")


def test_a_model_that_fails_is_said_to_all_who_wait_and_to_those_who_come(
    client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Any:
        raise MemoryError("no room for the keys")

    monkeypatch.setattr(client.server.worker._engine, "step", fail)
    assert client.ask("GET", "/health")[0] == 200
    assert client.refusal({"prompt": "the"}) == (503, "the model has failed")
    status, found, headers = client.ask("POST", COMPLETIONS, {"prompt": "the"})
    assert (status, found["error"]["message"], headers["Retry-After"]) == (503, "the model has failed", "1")
    assert client.refusal({"prompt": "the"}, LENS) == (503, "the model has failed")
    assert client.ask("GET", "/health")[:2] == (503, {"status": "failed"})
    assert "MemoryError: no room for the keys" in capfd.readouterr().err  # for who looks after the server
    assert client.server.worker.num_pending == 0


def test_a_server_that_is_closing_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.server.worker, "is_closing", True)
    assert client.refusal({"prompt": "the"}) == (503, "the server is closing")
    assert client.ask("GET", "/health")[:2] == (503, {"status": "closing"})


def test_other_machines_are_answered_under_any_name_but_not_without_the_key(run_dir: Path) -> None:
    with serving(run_dir, "--host", "0.0.0.0", key="opensesame") as client:
        ask, named = {"prompt": "the", "max_tokens": 1}, {"Host": "model.example.org"}
        assert client.refusal(ask, headers=named)[0] == 401
        assert client.ask("POST", COMPLETIONS, ask, named | {"Authorization": "Bearer opensesame"})[0] == 200
        origin = {"Origin": "https://elsewhere.example.org", "Authorization": "Bearer opensesame"}
        assert client.refusal(ask, headers=named | origin)[0] == 403
