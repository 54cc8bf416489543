"""The bodies of requests: JSON in the form of OpenAI's interface, with fields of our own for loops and thoughts.

Fields of that interface that would change the answer and are not obeyed here are refused unless they ask for nothing;
those that change none are passed over.
"""

from dataclasses import dataclass
from secrets import randbelow
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.eval.chat import chat_prompt
from pretrain.generation.engine import Wish
from pretrain.generation.sampling import Generation, check_prompts
from pretrain.generation.stop_strings import StopStrings
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop.exit_rules import exit_rule, is_auto
from pretrain.schema.choice import did_you_mean
from pretrain.schema.section import first_problem
from pretrain.storage import parse_json

DEFAULT_NEW_TOKENS = 256
MOST_STOPS = 16
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,), "suffix": ("",),
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "response_format": ({"type": "text"},), "tool_choice": ("none",),
}  # fmt: skip
"""Fields that are not obeyed, and the values, beside null, that ask for nothing."""
PASSED_OVER = (
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
)


class RequestError(ValueError):
    """A request that cannot be answered, with the status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class StreamOptions(BaseModel):
    include_usage: bool = False


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: StrictStr | None = None
    max_tokens: StrictInt | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: StrictInt | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    num_loops: StrictInt | StrictStr | None = None
    """L, or "auto[:RULE][:THRESHOLD]". Default: that of the run."""
    keys: Literal["share", "compute"] = "share"
    latents: StrictInt = Field(default=0, ge=0)
    """Latent thoughts between prompt and answer."""

    kind: ClassVar[str]
    """Of the answer, as the interface calls it."""


class CompletionBody(_Body):
    prompt: StrictStr | list[StrictInt]

    kind: ClassVar[str] = "text_completion"


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr
    name: StrictStr | None = None


class ChatBody(_Body):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1)

    kind: ClassVar[str] = "chat.completion"


class LensBody(BaseModel):
    """What the page asks for beside text: the logit lens of a text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: StrictStr | list[StrictInt]
    num_loops: StrictInt | None = Field(default=None, ge=1)
    top: StrictInt = Field(default=3, ge=1, le=10)


def read_body(content: bytes, kind: type[BaseModel]) -> Any:
    """A body of a kind.

    Raises:
        RequestError: it is no JSON, or not of this form.
    """
    try:
        values = parse_json(content)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RequestError(f"the body needs an object of JSON, got {type(values).__name__}")
    for name in [name for name in values if name in NEUTRAL or name in PASSED_OVER]:
        value = values.pop(name)
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            raise RequestError(f"{name}={str(value)[:60]} is not offered here: leave it out")
    for name in values.keys() - kind.model_fields.keys():
        raise RequestError(f"{name[:60]}: unknown field{did_you_mean(name, kind.model_fields)}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from None


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model with what its requests may ask for."""

    name: str
    model: LoopedGPT
    tokenizer: Tokenizer
    max_length: int
    """Tokens of prompt, thoughts and text together, at most."""
    max_loops: int
    has_thoughts: bool
    """Whether it was fine-tuned to think in latent thoughts, each the state before it."""

    def wish(self, body: CompletionBody | ChatBody) -> Wish:
        """What a body asks for.

        Raises:
            RequestError: it cannot be had.
        """
        if body.model is not None and body.model != self.name:
            raise RequestError(f"model={body.model[:60]!r} is not served here: {self.name!r} is", 404)
        try:
            prompt = self._prompt(body)
            script = self._script(body)
            settings = self._settings(body, len(prompt) + body.latents + len(script))
            check_prompts(self.model, [prompt], self.tokenizer.vocab_size, settings.max_new_tokens - 1)
        except RequestError:
            raise
        except (ValueError, ImportError) as error:
            raise RequestError(str(error)) from None
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        if len(stops) > MOST_STOPS or "" in stops:
            raise RequestError(f"stop: needs at most {MOST_STOPS} texts, none of them empty")
        return Wish(
            prompt=prompt, settings=settings, num_thoughts=body.latents, script=script, never=script,
            is_over=StopStrings(self.tokenizer, tuple(stops)),
        )  # fmt: skip

    def encode(self, prompt: str | list[int]) -> list[int]:
        """The tokens of a prompt, with bos where the tokenizer puts one."""
        if not isinstance(prompt, str):
            return prompt
        begin = [self.tokenizer.bos_id] if self.tokenizer.adds_bos or not prompt else []
        return [*begin, *self.tokenizer.encode(prompt)]

    def _prompt(self, body: CompletionBody | ChatBody) -> list[int]:
        if isinstance(body, ChatBody):
            tokens = chat_prompt(self.tokenizer, [each.model_dump(exclude_none=True) for each in body.messages])
        elif body.latents and isinstance(body.prompt, str):  # as a question is encoded in fine-tuning
            begin = [] if self.tokenizer.separators.are_one else [self.tokenizer.bos_id]
            tokens = [*begin, *self.tokenizer.encode(body.prompt)]
        else:
            tokens = self.encode(body.prompt)
        return [*tokens, self.tokenizer.bot_id] if body.latents else tokens

    def _script(self, body: CompletionBody | ChatBody) -> tuple[int, ...]:
        """What follows the thoughts, and is never chosen."""
        if not body.latents:
            return ()
        if not self.has_thoughts:
            raise RequestError(f"latents={body.latents}: this run was not fine-tuned to think in latent thoughts")
        if body.latents > self.max_length:
            raise RequestError(f"latents={body.latents}: at most {self.max_length} positions are offered")
        return (self.tokenizer.eot_id,)

    def _settings(self, body: CompletionBody | ChatBody, num_before: int) -> Generation:
        wanted = body.max_completion_tokens if isinstance(body, ChatBody) else None
        wanted = wanted or body.max_tokens
        room = self.max_length - num_before
        if room < (wanted or 1):
            more = f" and {wanted} new ones" if wanted else ""
            raise RequestError(
                f"{num_before} tokens before the text{more} are more than the {self.max_length} that are offered: "
                "shorten the prompt or lower max_tokens"
            )
        num_loops, rule = None, None
        if isinstance(body.num_loops, int):
            num_loops = body.num_loops
            self.require_loops(num_loops)
        elif body.num_loops is not None:
            if not is_auto(body.num_loops):
                raise RequestError(f"num_loops={body.num_loops[:60]!r}: needs a number, or auto[:RULE][:THRESHOLD]")
            rule = exit_rule(body.num_loops, self.model.config, "num_loops")
        given = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k")}
        sampling: dict[str, Any] = {"temperature": 1.0} | self.tokenizer.usage.sampling
        return Generation(
            max_new_tokens=wanted or min(DEFAULT_NEW_TOKENS, room), vocab_size=self.tokenizer.vocab_size,
            end_ids=self.tokenizer.end_ids, num_loops=num_loops, rule=rule, keys=body.keys,
            seed=randbelow(2**31) if body.seed is None else body.seed,
            **sampling | {name: value for name, value in given.items() if value is not None},
        )  # fmt: skip

    def require_loops(self, num_loops: int) -> None:
        """Raise a RequestError for a loop count that is not offered."""
        if not 1 <= num_loops <= self.max_loops:
            raise RequestError(f"num_loops={num_loops}: needs 1 to {self.max_loops}")
        try:
            self.model.config.require_loops("num_loops", [num_loops])
        except ValueError as error:
            raise RequestError(str(error)) from None
