"""Chats with a model that has a template, and fields of OpenAI's interface that ask for nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.api import load_run
from pretrain.eval.chat import chat_prompt
from pretrain.generation.engine import Wish
from pretrain.generation.generate import fulfil
from pretrain.generation.sampling import Generation
from tests.support.served import Client, pieces, serving
from tests.unit.hf.test_convert import byte_level  # noqa: F401 - a fixture
from tests.unit.hf.test_usage import published, run  # noqa: F401 - fixtures

CHAT = "/v1/chat/completions"
MESSAGES = [
    {"role": "system", "content": "You count."},
    {"role": "user", "content": "the loop"},
    {"role": "assistant", "content": "runs"},
    {"role": "user", "content": "again"},
]
BODY: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 9}


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[Client]:  # noqa: F811
    with serving(run, "--max-length", "300", "--max-loops", "3") as client:
        yield client


def ask(client: Client, **more: Any) -> Any:
    status, found, _ = client.ask("POST", CHAT, BODY | more)
    assert status == 200, found
    return found


@pytest.mark.parametrize("loops", [{}, {"num_loops": 3}])
def test_a_chat_is_answered_from_the_ids_of_the_template(
    client: Client,
    run: Path,  # noqa: F811
    loops: dict[str, int],
) -> None:
    found, loaded = ask(client, **loops), load_run(run, device="cpu")
    prompt = chat_prompt(loaded.tokenizer, MESSAGES)
    settings = Generation(
        max_new_tokens=9, vocab_size=loaded.tokenizer.vocab_size, end_ids=loaded.tokenizer.end_ids, **loops
    )
    with torch.inference_mode():
        (wanted,) = fulfil(loaded.model, [Wish(prompt=prompt, settings=settings)])
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": loaded.tokenizer.decode(wanted.tokens)}
    assert wanted.tokens and choice["loops"] == wanted.loops[: len(wanted.tokens)]
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    assert found["usage"]["prompt_tokens"] == len(prompt)
    assert ask(client, max_tokens=None, max_completion_tokens=9, **loops)["choices"] == found["choices"]


def test_a_stream_of_a_chat_is_its_answer_in_pieces(client: Client) -> None:
    (whole,) = ask(client)["choices"]
    status, text, headers = client.ask("POST", CHAT, BODY | {"stream": True})
    found = pieces(text)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    assert {each["object"] for each in found} == {"chat.completion.chunk"} and len({each["id"] for each in found}) == 1
    choices = [each["choices"][0] for each in found]
    assert choices[0]["delta"]["role"] == "assistant" and not any("role" in each["delta"] for each in choices[1:])
    assert "".join(each["delta"]["content"] for each in choices) == whole["message"]["content"] and len(choices) > 2
    assert [each["finish_reason"] for each in choices] == [None] * (len(choices) - 1) + [whole["finish_reason"]]


def test_fields_that_ask_for_nothing_change_nothing(client: Client) -> None:
    plain = ask(client)["choices"]
    idle: dict[str, Any] = {
        "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "logprobs": False,
        "response_format": {"type": "text"}, "tool_choice": None, "user": "me", "metadata": {"a": "b"}, "store": True,
    }  # fmt: skip
    assert ask(client, **idle)["choices"] == plain


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": "hello"}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: Input should be 'system', 'developer'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content: Input should be a valid string"),
        ({"prompt": "x"}, "prompt: unknown field"),
        ({"presence_penalty": 0.5}, "presence_penalty=0.5 is not offered here: leave it out"),
        ({"tools": [{"type": "function"}]}, "tools=[{'type': 'function'}] is not offered here"),
        ({"logprobs": True}, "logprobs=True is not offered here"),
        ({"max_completion_tokens": 900}, "900 new ones are more than the 300 that are offered"),
    ],
    ids=str,
)
def test_a_chat_that_cannot_be_answered_is_a_line(client: Client, change: dict[str, Any], line: str) -> None:
    status, found = client.refusal(BODY | change, CHAT)
    assert status == 400 and line in found, found
