"""Serve a run over HTTP, in the form of OpenAI's interface, with loops and latent thoughts as fields of a request.

    python -m pretrain.serve --run runs/12x2 [--port 8000]

    curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "KING HENRY.", "num_loops": "auto", "max_tokens": 50}'

Requests share the batch (`pretrain/generation/`); what is served, and to whom: `pretrain/serve/application.py`. It
listens to this machine alone unless --host says otherwise, which needs a key. Ends on SIGINT and SIGTERM, exit code 0;
2: bad input.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.checkpoint.names import require_checkpoint
from pretrain.command.console import print_line, print_warnings, run_command
from pretrain.command.entry import require_one_process
from pretrain.command.options import OptionParser, add_run, at_least, positive

if TYPE_CHECKING:
    from pretrain.run.trained_model import TrainedModel
    from pretrain.serve.application import ModelServer

LEAST_KEY = 8
"""Characters of a key."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OptionParser(prog="python -m pretrain.serve", description="Serve a run over HTTP.")
    add_run(parser)
    option = parser.add_argument
    option("--tokenizer", type=Path, metavar="FILE", help="default: data.tokenizer of the run")
    option("--name", metavar="TEXT", help="of the model in requests; default: that of the run's directory")
    option(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at; default: 127.0.0.1, this machine alone"
    )
    option("--port", type=at_least(0, 65535), default=8000, metavar="N", help="0: any that is free; default: 8000")
    option("--api-key-file", type=Path, metavar="FILE", help="holds the key that requests must bring; needed by --host")
    option("--batch", type=positive, default=16, metavar="N", help="sequences at once; default: 16")
    option(
        "--max-waiting", type=at_least(0), default=64, metavar="N", help="that wait for them; more: 429; default: 64"
    )
    longest = "tokens of prompt and answer together, at most; default: train.seq_len of the run"
    option("--max-length", type=at_least(2), metavar="N", help=longest)
    option("--max-loops", type=positive, metavar="N", help="most num_loops of a request; default: model.num_loops")
    option("--timeout", type=positive, default=600, metavar="S", help="seconds of a request at most; default: 600")
    return parser.parse_args(argv)


def is_this_machine(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(arguments: argparse.Namespace) -> str | None:
    """The key that requests must bring.

    Raises:
        ValueError: there is none, and other machines would be listened to; or it is too short.
    """
    if arguments.api_key_file is None:
        if not is_this_machine(arguments.host):
            raise ValueError(
                f"--host {arguments.host}: other machines are answered only with a key: give --api-key-file FILE"
            )
        return None
    key = arguments.api_key_file.read_text(encoding="utf-8").strip()
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{arguments.api_key_file}: needs a key of at least {LEAST_KEY} letters and digits in one line"
        )
    return key


def make_server(arguments: argparse.Namespace, trained: "TrainedModel", key: str | None) -> "ModelServer":
    from pretrain.serve.application import ModelServer
    from pretrain.serve.bodies import ServedModel
    from pretrain.serve.worker import EngineWorker

    config, model = trained.saved.model, trained.model
    max_loops, max_length = arguments.max_loops or config.num_loops, arguments.max_length or trained.saved.seq_len
    config.require_loops("--max-loops", [max_loops])
    if config.positions == "learned" and max_length > trained.saved.seq_len:
        raise ValueError(f"--max-length {max_length}: the model learned {trained.saved.seq_len} positions")
    served = ServedModel(
        name=arguments.name or arguments.run.resolve().name, model=model.requires_grad_(False),
        tokenizer=trained.tokenizer, max_length=max_length, max_loops=max_loops,
        has_thoughts="finetune" in trained.checkpoint.meta,
    )  # fmt: skip
    worker = EngineWorker(
        model, num_slots=arguments.batch, capacity=max_length, num_loops=max_loops, max_waiting=arguments.max_waiting
    )
    return ModelServer(
        served=served, worker=worker, api_key=key, is_local=is_this_machine(arguments.host),
        timeout_s=arguments.timeout,
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    require_one_process("pretrain.serve")
    key = read_key(arguments)
    require_checkpoint(arguments.run, arguments.step)  # before torch is imported, which takes seconds
    import aiohttp  # noqa: F401  # an extra: before torch is imported, too
    import torch

    from pretrain.run.trained_model import load_trained_model
    from pretrain.serve.listening import listen

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained_model(arguments.run, device, step=arguments.step, tokenizer=arguments.tokenizer)
    print_warnings([*trained.problems, *trained.tokenizer.usage.not_obeyed])
    server = make_server(arguments, trained, key)

    def say(address: str) -> None:
        print_line(f"{arguments.run}, step {trained.step}: serving {server.served.name} at {address}")

    listen(server, arguments.host, arguments.port, say)


def main() -> int:
    return run_command(partial(run, parse(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
