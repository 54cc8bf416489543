"""Sample from a pretrained model: `python tools/generate.py --run runs/quickstart --prompt 'KING HENRY.'`.

Prints each prompt with its continuation, which depends on the prompt and its number, the model and the settings, but
not on the batch it is in. Implementation: `pretrain/generation/`.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint.names import require_checkpoint
from pretrain.command.console import print_warnings, run_command
from pretrain.command.entry import require_one_process
from pretrain.command.options import OptionParser, add_run, at_least, positive
from pretrain.model.loop.exit_rules import HELP, exit_rule, is_auto

if TYPE_CHECKING:
    from pretrain.data.tokenizers.tokenizer import Tokenizer
    from pretrain.generation.sampling import Generation
    from pretrain.run.trained_model import TrainedModel


def parse_arguments() -> argparse.Namespace:
    parser = OptionParser(description="Generate text with a pretrained model.")
    add_run(parser)
    option = parser.add_argument
    option("--tokenizer", type=Path, metavar="FILE", help="default: data.tokenizer of the run")
    option("--prompt", action="append", default=[], metavar="TEXT", help="text to continue; may be given several times")
    chat = "each prompt is a message, put into the model's chat template; prints the answers alone"
    option("--chat", action="store_true", help=chat)
    option("--prompt-file", type=Path, metavar="FILE", help="more prompts, one per line; empty lines are skipped")
    option(
        "--num-loops", metavar="N|auto[:RULE][:THRESHOLD]",
        help="loops to run; default: model.num_loops of the run. auto: each new token stops where the rule says. Rules "
        f"(thresholds): {HELP}. Default: gate if the model has one, else kl",
    )  # fmt: skip
    option("--max-loops", type=positive, metavar="N", help="most loops with auto; default: model.num_loops of the run")
    option(
        "--keys",
        choices=["share", "compute"],
        help="with auto, keys and values of loops that a token leaves out: its last loop's (the default), or computed",
    )
    option("--max-new-tokens", type=positive, default=200, metavar="N", help="longest continuation; default: 200")
    own = "default: the published model's own, else"
    option("--temperature", type=float, metavar="T", help=f"0 = always the likeliest token; {own} 0.8")
    option("--top-p", type=float, metavar="P", help=f"mass of the likeliest tokens drawn; {own} 0.95")
    option("--top-k", type=at_least(0), metavar="K", help=f"number of the likeliest tokens drawn, 0 = all; {own} 0")
    option("--seed", type=int, default=0, metavar="N", help="seed of the sampling; default: 0")
    option("--batch", type=positive, default=16, metavar="N", help="prompts that run at once; default: 16")
    return parser.parse_args()


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = list(arguments.prompt)
    if arguments.prompt_file is not None:
        try:
            prompts += [line for line in arguments.prompt_file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{arguments.prompt_file}: not UTF-8 text: byte {error.start}") from None
    if not prompts:
        raise ValueError("no prompt: give --prompt TEXT or --prompt-file FILE")
    return prompts


def encode(tokenizer: "Tokenizer", text: str, what: str, *, is_chat: bool) -> list[int]:
    """Token ids of a text or message; an error names what it is."""
    from pretrain.eval.chat import chat_prompt

    if is_chat:
        return chat_prompt(tokenizer, text)
    try:
        row = tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    return [tokenizer.bos_id, *row] if tokenizer.adds_bos or not row else row


def sampling_of(arguments: argparse.Namespace, tokenizer: "Tokenizer") -> dict[str, Any]:
    """temperature, top_p and top_k: as given, else as the model's publisher says, else those of this tool."""
    values = {name: getattr(arguments, name) for name in ("temperature", "top_p", "top_k")}
    given = {name: value for name, value in values.items() if value is not None}
    return (tokenizer.usage.sampling or {"temperature": 0.8, "top_p": 0.95}) | given


def loop_count(arguments: argparse.Namespace) -> int | None:
    """Most loops that a token runs; None for the run's own count."""
    text = arguments.num_loops
    if text is not None and is_auto(text):
        return arguments.max_loops
    if arguments.max_loops is not None:
        raise ValueError("--max-loops is for --num-loops auto")
    if arguments.keys is not None:
        raise ValueError("--keys is for --num-loops auto")
    try:
        return None if text is None else positive(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--num-loops: {error}") from None


def texts(
    trained: "TrainedModel", prompts: list[str], settings: "Generation", batch: int, *, is_chat: bool
) -> Iterator[str]:
    """Each prompt with its continuation, or the answers of a chat; a terminal shows a bar over the new tokens."""
    from tqdm import tqdm

    from pretrain.generation.engine import Wish
    from pretrain.generation.generate import count_loops, fulfil
    from pretrain.generation.sampling import check_prompts

    tokenizer, silent = trained.tokenizer, not sys.stderr.isatty()
    rows = [
        encode(tokenizer, prompt, f"prompt {number}", is_chat=is_chat) for number, prompt in enumerate(prompts, start=1)
    ]
    check_prompts(trained.model, rows, settings.vocab_size, settings.max_new_tokens - 1)
    wishes = [Wish(prompt=row, settings=settings, row_number=number) for number, row in enumerate(rows)]
    bar = partial(tqdm, total=settings.max_new_tokens * len(rows), unit="token", leave=False, disable=silent)
    found = fulfil(trained.model, wishes, batch=batch, track=bar)
    if settings.rule is not None:
        mean = count_loops(found) / sum(max(len(each.tokens), 1) for each in found)
        print(f"{settings.rule}: {mean:.2f} loops a new token", file=sys.stderr)
    for row, each in zip(rows, found, strict=True):
        yield tokenizer.decode(each.tokens if is_chat else row + each.tokens)


def run(arguments: argparse.Namespace) -> None:
    require_one_process("tools/generate.py")
    prompts, most, rule = read_prompts(arguments), loop_count(arguments), None
    require_checkpoint(arguments.run, arguments.step)  # before torch is imported, which takes seconds
    import torch

    from pretrain.generation.sampling import Generation
    from pretrain.model.count import cached_numbers, window_numbers
    from pretrain.run.trained_model import load_trained_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained_model(arguments.run, device, step=arguments.step, tokenizer=arguments.tokenizer)
    print_warnings([*trained.problems, *trained.tokenizer.usage.not_obeyed])
    model = trained.saved.model
    if most is not None:
        model.require_loops("--num-loops", [most])
    if arguments.num_loops is not None and is_auto(arguments.num_loops):
        rule = exit_rule(arguments.num_loops, model)
    settings = Generation(
        max_new_tokens=arguments.max_new_tokens,
        vocab_size=trained.tokenizer.vocab_size,
        end_ids=trained.tokenizer.end_ids,
        num_loops=most,
        seed=arguments.seed,
        rule=rule,
        keys=arguments.keys or "share",
        **sampling_of(arguments, trained.tokenizer),
    )
    num_loops = most or model.num_loops
    depth = f"{'' if rule is None else 'at most '}{num_loops} loops, {model.effective_depth(num_loops)} layers deep"
    size = next(trained.model.parameters()).itemsize
    keys = f"{size * cached_numbers(model, num_loops):,} bytes of keys a token"
    if in_windows := size * window_numbers(model, num_loops):
        keys += f" and {in_windows:,} a text"
    print(f"{arguments.run}, step {trained.step}, {depth}, {keys}", file=sys.stderr)
    for number, text in enumerate(texts(trained, prompts, settings, arguments.batch, is_chat=arguments.chat)):
        if number:
            print("-" * 80)
        print(text, flush=True)


def main() -> int:
    return run_command(partial(run, parse_arguments()))


if __name__ == "__main__":
    sys.exit(main())
