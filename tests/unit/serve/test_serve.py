"""A server under real requests: what it answers is what generation gives, and what it cannot answer is a line."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.api import load_run as load_finetuned_run
from finetune.examples.examples import form_of
from pretrain.api import load_run
from pretrain.serve.__main__ import main, parse
from tests.support.finetuned_runs import save_run
from tests.support.served import Client, pieces, serving
from tests.support.text_runs import SEQ_LEN, save_text_run

ROOT = Path(__file__).parents[3]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def client(run_dir: Path) -> Iterator[Client]:
    with serving(run_dir, "--batch", "2", "--max-waiting", "3", "--max-loops", "4", "--name", "kings") as client:
        yield client


@pytest.mark.parametrize("how", [{}, {"num_loops": 3}, {"temperature": 0.9, "top_p": 0.8, "top_k": 20, "seed": 5}])
def test_a_completion_is_what_the_run_generates(client: Client, run_dir: Path, how: dict[str, Any]) -> None:
    found = client.complete(prompt="the king of", max_tokens=9, model="kings", **how)
    run = load_run(run_dir, device="cpu")
    wanted = run.generate("the king of", max_new_tokens=9, **{"temperature": 0.0} | how)
    (choice,) = found["choices"]
    assert choice["text"] == wanted and found["object"] == "text_completion" and found["model"] == "kings"
    assert choice["finish_reason"] == "length" and set(choice["loops"]) == {how.get("num_loops", 2)}
    num_prompt = len(run.encode("the king of"))
    assert found["usage"] == {"prompt_tokens": num_prompt, "completion_tokens": 9, "total_tokens": num_prompt + 9}


def test_a_stream_is_the_completion_in_pieces(client: Client) -> None:
    body = {"prompt": "All was", "max_tokens": 12, "temperature": 0, "stop": ["ea"]}
    whole = client.complete(**body)
    status, text, headers = client.ask(
        "POST", COMPLETIONS, body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    *found, usage = pieces(text)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    choices = [each["choices"][0] for each in found]
    (choice,) = whole["choices"]
    assert "".join(each["text"] for each in choices) == choice["text"] and len(choices) > 2
    assert [loops for each in choices for loops in each["loops"]] == choice["loops"]
    assert [each["finish_reason"] for each in choices] == [None] * (len(choices) - 1) + [choice["finish_reason"]]
    assert usage["usage"] == whole["usage"] and usage["choices"] == []


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client: Client) -> None:
    free = client.complete(prompt="the", max_tokens=20)["choices"][0]["text"]
    stop = free[7:10]
    cut = client.complete(prompt="the", max_tokens=20, stop=stop)["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (free.split(stop)[0], "stop") and len(cut["loops"]) < 20


def test_tokens_stop_looping_on_their_own(client: Client, run_dir: Path) -> None:
    loops = client.complete(prompt="the", max_tokens=6, num_loops="auto:change:1e9")["choices"][0]["loops"]
    assert loops == [1] * 6
    every = client.complete(prompt="the", max_tokens=6, num_loops="auto:kl:1e-30", keys="compute")["choices"][0]
    assert (
        every["loops"] == [2] * 6 and every["text"] == client.complete(prompt="the", max_tokens=6)["choices"][0]["text"]
    )


def test_requests_that_run_together_are_each_as_if_alone(client: Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    bodies = [{"prompt": f"the king of {n}", "max_tokens": 4 + n, "num_loops": 1 + n % 4} for n in range(5)]
    alone = [client.complete(**body)["choices"] for body in bodies]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda body: client.complete(**body)["choices"], bodies)) == alone


def test_what_cannot_be_answered_is_a_line(client: Client) -> None:
    for body, status, message in (
        (b"{", 400, "the body is not JSON: "),
        (b"[" * 100_000, 400, "the body is not JSON: nested too deeply"),
        ([1], 400, "the body needs an object of JSON, got list"),
        ({"prompt": 3}, 400, "prompt.str: Input should be a valid string"),
        ({}, 400, "prompt: Field required"),
        ({"prompt": "x", "max_token": 3}, 400, "max_token: unknown field, did you mean max_tokens?"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"prompt": "x", "n": 2}, 400, "n=2 is not offered here"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature=-1"),
        ({"prompt": "x", "num_loops": 5}, 400, "num_loops=5: needs 1 to 4"),
        ({"prompt": "x", "num_loops": "auto:gate"}, 400, "num_loops auto:gate: the model has no gate"),
        ({"prompt": "x", "num_loops": "many"}, 400, "num_loops='many': needs a number, or auto"),
        ({"prompt": "x", "latents": 2}, 400, "latents=2: this run was not fine-tuned to think"),
        ({"prompt": "x", "stop": [""]}, 400, "stop: needs at most 16 texts, none of them empty"),
        ({"prompt": [1, 999]}, 400, "prompt 0 has tokens 1 to 999, the vocabulary has"),
        ({"prompt": []}, 400, "prompt 0 has no token"),
        ({"prompt": "the " * 200}, 400, f"are more than the {SEQ_LEN} that are offered: shorten the prompt"),
        ({"prompt": "x", "max_tokens": 70}, 400, f"70 new ones are more than the {SEQ_LEN} that are offered"),
        ({"prompt": "x", "model": "gpt-4"}, 404, "model='gpt-4' is not served here: 'kings' is"),
        (b'{"prompt": "' + b"x" * 2**20 + b'"}', 413, "the body has more than 1048576 bytes"),
    ):
        found = client.refusal(body)
        assert found[0] == status and message in found[1], found
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    assert client.refusal(chat, CHAT) == (400, "this model has no chat template: its prompts are plain text")
    assert client.refusal({}, "/v1/nothing") == (404, "/v1/nothing: there is nothing here")
    assert client.ask("GET", COMPLETIONS)[0] == 405
    assert client.complete(prompt="x", max_tokens=1)


def hold(client: Client, **body: Any) -> HTTPConnection:
    """A stream that has begun."""
    connection = HTTPConnection("127.0.0.1", client.port, timeout=60)
    content = {"prompt": "the", "stream": True, "temperature": 0, "max_tokens": 60, "num_loops": 4} | body
    connection.request("POST", COMPLETIONS, json.dumps(content))
    connection.response = connection.getresponse()  # type: ignore[attr-defined]
    return connection


def wait_until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        signal.sigtimedwait([], 0.01)
    raise AssertionError("it does not come true")


def test_a_client_that_goes_leaves_the_batch_and_too_many_are_refused(client: Client, monkeypatch: Any) -> None:
    """The model stands still while the places fill, so that none of the requests ends."""
    gate, step = __import__("threading").Event(), client.server.worker._engine.step
    monkeypatch.setattr(client.server.worker._engine, "step", lambda: (gate.wait(60), step())[1])
    held = [hold(client) for _ in range(5)]
    assert (client.metric("sequences_open"), client.metric("sequences_waiting")) == (2, 3)
    status, found, headers = client.ask("POST", COMPLETIONS, {"prompt": "x"})
    assert (status, headers["Retry-After"]) == (429, "1")
    assert found["error"]["message"] == "3 requests are waiting already: try again later"
    for connection in held:
        connection.response.close()  # type: ignore[attr-defined]
        connection.close()
    wait_until(lambda: client.server.worker.num_pending == 0)
    gate.set()
    wait_until(lambda: client.server.worker._engine.is_idle)
    assert client.complete(prompt="x", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert client.server.counts.requests[COMPLETIONS, 499] == 5


def test_a_request_that_takes_too_long_ends_and_leaves(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(client.server, "timeout_s", 0.05)
    gate, step = __import__("threading").Event(), client.server.worker._engine.step
    monkeypatch.setattr(client.server.worker._engine, "step", lambda: (gate.wait(60), step())[1])
    assert client.refusal({"prompt": "the"}) == (504, "not done after 0.05 seconds")
    _, text, _ = client.ask("POST", COMPLETIONS, {"prompt": "the", "stream": True})
    assert [each["error"]["message"] for each in pieces(text)] == ["not done after 0.05 seconds"]
    gate.set()
    wait_until(lambda: client.server.worker._engine.is_idle)


def test_what_is_served_is_said(client: Client) -> None:
    status, found, _ = client.ask("GET", "/v1/models")
    (model,) = found["data"]
    assert (status, model["id"], model["num_loops"], model["max_loops"]) == (200, "kings", 2, 4)
    assert client.ask("GET", "/v1/models/kings")[1] == model and client.ask("GET", "/v1/models/x")[0] == 404
    assert client.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    before = client.metric("new_tokens_total"), client.metric("loops_total")
    client.complete(prompt="the", max_tokens=5, num_loops=3)
    assert (client.metric("new_tokens_total"), client.metric("loops_total")) == (before[0] + 5, before[1] + 15)


@torch.no_grad()
def test_the_lens_is_that_of_the_run(client: Client, run_dir: Path) -> None:
    status, found, _ = client.ask("POST", "/v1/lens", {"prompt": "the king", "num_loops": 3, "top": 2})
    run = load_run(run_dir, device="cpu")
    chances = run.head(run.states("the king", num_loops=[1, 2, 3])).softmax(-1)
    assert status == 200 and found["tokens"] == run.tokens("the king")
    for loop, rows in enumerate(found["loops"]):
        for place, best in enumerate(rows):
            values, ids = chances[loop, place].topk(2)
            assert [text for text, _ in best] == [run.tokenizer.decode([int(token)]) for token in ids]
            assert [value for _, value in best] == pytest.approx(values.tolist(), abs=1e-4)
    assert client.refusal({"prompt": "x " * 200}, "/v1/lens")[0] == 400


def test_thoughts_are_those_of_fine_tuning(tmp_path: Path) -> None:
    save_run(tmp_path / "thinking", method={"name": "coconut"})
    run = load_finetuned_run(tmp_path / "thinking", device="cpu")
    (example,), end = run.questions("test", 1), form_of(run.config.data.train).question_end
    with serving(tmp_path / "thinking") as client:
        for latents in (1, 3):
            body = {"prompt": example.question + end, "latents": latents, "max_tokens": 8}
            found = client.complete(**body)
            assert found["choices"][0]["text"] == run.answer(example.question, num_thoughts=latents)
            assert found["usage"]["latents"] == latents


def test_a_key_is_asked_for(run_dir: Path) -> None:
    with serving(run_dir, key="opensesame") as client:
        ask = {"prompt": "x", "max_tokens": 1}
        assert client.refusal(ask) == (401, "needs the API key of this server: Authorization: Bearer KEY")
        assert client.refusal(ask, headers={"Authorization": "Bearer wrong"})[0] == 401
        assert client.ask("POST", COMPLETIONS, ask, {"Authorization": "Bearer opensesame"})[0] == 200
        assert client.ask("GET", "/health")[0] == 200 and client.ask("GET", "/metrics")[0] == 401


def test_pages_of_others_may_not_ask(client: Client) -> None:
    ask = {"prompt": "x", "max_tokens": 1}
    assert client.refusal(ask, headers={"Origin": "http://example.org"})[0] == 403
    assert client.refusal(ask, headers={"Host": "example.org"})[0] == 403
    own = f"127.0.0.1:{client.port}"
    assert client.ask("POST", COMPLETIONS, ask, {"Host": own, "Origin": f"http://{own}"})[0] == 200


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines are answered only with a key: give --api-key-file"),
        (["--max-loops", "999999"], "--max-loops=999999"),
        (["--api-key-file", "short"], "short: needs a key of at least 8 letters"),
        (["--api-key-file", "absent"], "absent: No such file"),
    ],
)
def test_a_server_that_may_not_be_is_a_line(
    options: list[str], line: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "short").write_text("abc\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["serve", "--run", str(run_dir), *options])
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and line in error and error.count("\n") == 1


def test_the_extra_that_serving_needs_is_named(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "--run", str(run_dir)])
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main() == 2
    assert capsys.readouterr().err == "error: aiohttp is not installed: bash tools/setup.sh serve\n"


def test_the_command_serves_until_it_is_told_to_end(run_dir: Path) -> None:
    command = [sys.executable, "-m", "pretrain.serve", "--run", str(run_dir), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"serving (\S+) at http://127\.0\.0\.1:(\d+)$", said.strip())
        assert found is not None, said + process.stderr.read()
        port = int(found[2])
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", COMPLETIONS, json.dumps({"prompt": "the", "max_tokens": 3}))
        assert len(json.loads(connection.getresponse().read())["choices"][0]["loops"]) == 3
        other = [*command[:-1], str(port)]
        taken = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert taken.returncode == 1 and taken.stderr.count("\n") == 1 and str(port) in taken.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and process.stderr.read() == ""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_that_is_none_is_refused(port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--run", str(tmp_path), "--port", port])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
