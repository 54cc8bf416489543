"""The server: paths, who may ask, and how a request becomes text.

    /v1/completions   /v1/chat/completions   /v1/models   as of OpenAI, streams of server-sent events among them
    /v1/lens          the logit lens over the loops of a text
    /                 a page for the browser
    /health           200 while it can answer, else 503        /metrics   counts, for Prometheus

A request that cannot be answered gets one line that says why: 400 its own fault, 401 no key, 403 of another site's
page, 404, 408 its body does not come, 413 too large, 429 too many wait, 503 closing or broken, 504 out of time. A
client that goes takes its request out of the batch.
"""

import asyncio
import hmac
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from pretrain.generation.engine import Wish
from pretrain.serve.answers import DONE, AnswerForm, error_object, event, model_object, usage_object
from pretrain.serve.bodies import ChatBody, CompletionBody, LensBody, RequestError, ServedModel, read_body
from pretrain.serve.counts import FORMAT, ServerCounts
from pretrain.serve.lens import lens
from pretrain.serve.texts import TextStream
from pretrain.serve.worker import EngineWorker, News, Ticket

MOST_BYTES = 2**20
"""Of a body."""
NO_BODY, CLIENT_WENT, OUT_OF_TIME = 408, 499, 504
OPEN_PATHS = ("/", "/health")
"""That need no key; the page holds nothing and asks for one."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the page: its own script, by its hash, and no other."""
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(kw_only=True)
class ModelServer:
    """What the handlers share."""

    served: ServedModel
    worker: EngineWorker
    api_key: str | None
    """Without which nothing but the page and the health is told; None: nobody is asked."""
    is_local: bool
    """Whether only this machine is listened to."""
    timeout_s: float
    """Longest time of a request, its waiting included."""
    counts: ServerCounts = field(default_factory=ServerCounts)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._answer_errors, self._admit], client_max_size=MOST_BYTES)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._model),
                web.post("/v1/completions", self._complete),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/lens", self._lens),
            ]
        )
        app.on_startup.append(self._start)
        app.on_shutdown.append(self._refuse)
        app.on_cleanup.append(self._close)
        return app

    async def _start(self, _: web.Application) -> None:
        self.worker.start()

    async def _refuse(self, _: web.Application) -> None:
        """Before those that are under way get their last seconds."""
        self.worker.is_closing = True

    async def _close(self, _: web.Application) -> None:
        await self.worker.close()

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every failure as an object with one line, and a count of every request."""
        path = request.match_info.route.resource.canonical if request.match_info.route.resource else "other"
        try:
            response = await handler(request)
        except RequestError as error:
            response = self._error(str(error), error.status)
        except web.HTTPException as error:
            said = {
                404: f"{request.path}: there is nothing here",
                405: f"{request.path} does not take {request.method}",
            }
            said[413] = f"the body has more than {MOST_BYTES} bytes"
            response = self._error(said.get(error.status, error.reason), error.status)
        except (asyncio.CancelledError, ConnectionError):
            self.counts.requests[path, CLIENT_WENT] += 1
            raise
        self.counts.requests[path, response.status] += 1
        return response

    def _error(self, message: str, status: int) -> web.Response:
        headers = {"Retry-After": "1"} if status in (429, 503) else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return web.json_response(error_object(message, status), status=status, headers=headers)

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keys, and pages of other sites: these reach a server on this machine through the browser of its user."""
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if self.is_local and _name_of(host) not in LOCAL_NAMES:
            raise RequestError("this server is for this machine alone, under the name localhost or 127.0.0.1", 403)
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError(f"pages of {origin[:60]} may not ask here", 403)
        if self.api_key is not None and request.path not in OPEN_PATHS:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.api_key.encode()):
                raise RequestError("needs the API key of this server: Authorization: Bearer KEY", 401)
        return await handler(request)

    async def _page(self, _: web.Request) -> web.Response:
        text = files("pretrain.serve").joinpath("page.html").read_text(encoding="utf-8")
        script = text.partition("<script>")[2].partition("</script>")[0]
        policy = POLICY.format(b64encode(sha256(script.encode()).digest()).decode())
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _health(self, _: web.Request) -> web.Response:
        status = "ok" if self.worker.is_working else "closing" if self.worker.is_closing else "failed"
        return web.json_response({"status": status}, status=200 if status == "ok" else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.counts.text(self.worker), headers={"Content-Type": FORMAT})

    def _described(self) -> dict[str, object]:
        served, config = self.served, self.served.model.config
        return model_object(
            served.name, num_loops=config.num_loops, max_loops=served.max_loops, max_length=served.max_length,
            has_exit_gate=config.loop.exit != "none", has_thoughts=served.has_thoughts,
            has_chat_template=served.tokenizer.usage.default_template is not None,
        )  # fmt: skip

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._described()]})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != self.served.name:
            raise RequestError(f"{request.match_info['name'][:60]!r} is not served here", 404)
        return web.json_response(self._described())

    async def _lens(self, request: web.Request) -> web.Response:
        self._require_room()
        body: LensBody = await self._read(request, LensBody)
        async with _in_time(self.timeout_s):
            return web.json_response(await self.worker.ask(lambda: lens(self.served, body)))

    async def _read(self, request: web.Request, kind: type[BaseModel]) -> Any:
        """The body of a request, of a kind; one that does not come holds a connection no longer than an answer may."""
        async with _in_time(self.timeout_s, "the body has not come", NO_BODY):
            content = await request.read()
        return read_body(content, kind)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, await self._read(request, CompletionBody))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, await self._read(request, ChatBody))

    def _require_room(self) -> None:
        if not self.worker.is_working:
            raise RequestError("the server is closing" if self.worker.is_closing else "the model has failed", 503)
        if self.worker.is_full:
            raise RequestError(f"{self.worker.num_waiting} requests are waiting already: try again later", 429)

    async def _answer(self, request: web.Request, body: CompletionBody | ChatBody) -> web.StreamResponse:
        self._require_room()
        wish = self.served.wish(body)
        form = AnswerForm(kind=body.kind, model=self.served.name)
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        stream = TextStream(self.served.tokenizer, stops)
        ticket = self.worker.add(wish)
        self.counts.prompt_tokens += len(wish.prompt)
        try:
            pieces = self._pieces(ticket, stream)
            if body.stream:
                has_usage = body.stream_options is not None and body.stream_options.include_usage
                return await self._stream(request, form, wish, pieces, has_usage=has_usage)
            async with _in_time(self.timeout_s):
                found = [piece async for piece in pieces]
            text, loops = "".join(text for text, _, _ in found), [each for _, taken, _ in found for each in taken]
            return web.json_response(form.whole(text, loops, found[-1][2], _usage(wish, len(loops))))
        finally:
            self.worker.done(ticket)

    async def _pieces(
        self, ticket: Ticket, stream: TextStream
    ) -> AsyncIterator[tuple[str, tuple[int, ...], str | None]]:
        """What each step adds: text, the loops of its tokens, and in the last one why it ended."""
        started, is_first = time.monotonic(), True
        while True:
            news: News = await ticket.news.get()
            if news.reason == "failed":
                raise RequestError("the model has failed", 503)
            if is_first:
                self.counts.first_token_s += time.monotonic() - started
                self.counts.num_first += 1
                is_first = False
            self.counts.new_tokens += len(news.tokens)
            self.counts.loops += sum(news.loops)
            text = stream.add(news.tokens, is_last=news.reason is not None)
            yield text, news.loops[: len(news.tokens)], news.reason
            if news.reason is not None:
                self.counts.answer_s += time.monotonic() - started
                self.counts.num_answers += 1
                return

    async def _stream(
        self, request: web.Request, form: AnswerForm, wish: Wish,
        pieces: AsyncIterator[tuple[str, tuple[int, ...], str | None]], *, has_usage: bool,
    ) -> web.StreamResponse:  # fmt: skip
        """Server-sent events, one as soon as there is text; what goes wrong once it has begun is an event too."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        held: list[int] = []
        """Loops of tokens whose text is not sure yet."""
        num_new, is_first = 0, True
        try:
            async with _in_time(self.timeout_s):
                async for text, loops, reason in pieces:
                    held += loops
                    num_new += len(loops)
                    if text or reason is not None:
                        await response.write(event(form.piece(text, held, reason, is_first=is_first)).encode())
                        held, is_first = [], False
            if has_usage:
                await response.write(event(form.usage_piece(_usage(wish, num_new))).encode())
        except RequestError as error:
            await response.write(event(error_object(str(error), error.status)).encode())
        await response.write(DONE.encode())
        await response.write_eof()
        return response


@asynccontextmanager
async def _in_time(seconds: float, what: str = "not done", status: int = OUT_OF_TIME) -> AsyncIterator[None]:
    """Raise a RequestError when some seconds are over."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestError(f"{what} after {seconds:g} seconds", status) from None


def _usage(wish: Wish, num_new: int) -> dict[str, int]:
    return usage_object(len(wish.prompt), num_new, wish.num_thoughts)


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
