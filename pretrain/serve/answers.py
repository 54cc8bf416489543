"""Answers in the form of OpenAI's interface, whole and in pieces; with each choice, beside its text, the `loops` that
its new tokens took."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DONE = "data: [DONE]\n\n"
"""Ends a stream."""


def error_object(message: str, status: int) -> dict[str, Any]:
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def event(value: dict[str, Any]) -> str:
    """A piece of a stream of server-sent events."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def model_object(name: str, **more: Any) -> dict[str, Any]:
    """A model in the list of models."""
    return {"id": name, "object": "model", "owned_by": "looped", **more}


@dataclass(kw_only=True)
class AnswerForm:
    """The fields of one answer."""

    kind: str
    """text_completion or chat.completion."""
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, text: str, loops: Sequence[int], reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        content: dict[str, Any] = {"text": text}
        if self.is_chat:
            content = {"message": {"role": "assistant", "content": text}}
        return self._frame(self.kind, [self._choice(content, loops, reason)]) | {"usage": usage}

    def piece(self, text: str, loops: Sequence[int], reason: str | None, *, is_first: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"text": text}
        if self.is_chat:
            content = {"delta": ({"role": "assistant"} if is_first else {}) | {"content": text}}
        return self._frame(self._piece_kind, [self._choice(content, loops, reason)])

    def usage_piece(self, usage: dict[str, int]) -> dict[str, Any]:
        """Ends a stream that asked for it."""
        return self._frame(self._piece_kind, []) | {"usage": usage}

    @property
    def is_chat(self) -> bool:
        return self.kind == "chat.completion"

    @property
    def _piece_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else self.kind

    def _choice(self, content: dict[str, Any], loops: Sequence[int], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason, "loops": list(loops)}

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        number = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.number}"
        return {"id": number, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage_object(num_prompt: int, num_new: int, num_thoughts: int) -> dict[str, int]:
    counted = {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}
    return counted | ({"latents": num_thoughts} if num_thoughts else {})
