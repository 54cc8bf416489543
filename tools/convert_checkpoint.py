"""Convert weights: `python tools/convert_checkpoint.py export --run runs/quickstart --out exported/quickstart`.

    export  a run's checkpoint, of any layout -> a folder that transformers (and vLLM) loads, or a GGUF file (llama.cpp)
    import  the folder of a published model (Llama, GPT-2, Qwen 2 and 3, OLMo 1 and 2; looped: Nanbeige 4.2, Ouro,
            Huginn; or an export), or a GGUF file of Llama or Qwen -> a run directory
    loop    an unlooped run -> a run of a looped model k⊗L, to be trained further with checkpoint.init_from

Exports and imports are checked by comparing logits with transformers. conversion.txt in the result lists every tensor.
Implementation: `pretrain/hf/`.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pretrain.checkpoint.names import require_checkpoint
from pretrain.command.console import run_command
from pretrain.command.options import OptionParser, add_run, at_least, positive
from pretrain.hf.config_file import read_config
from pretrain.model.loop.tables import INJECTIONS
from pretrain.storage import require_new

FORMATS = ("nanbeige", "ouro", "huginn", "gguf")
MERGES = ("average", "first", "middle", "last", "none")


def merge_of(text: str) -> str | int:
    """A way to merge blocks, or the number of one."""
    if text in MERGES:
        return text
    try:
        return at_least(0)(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(MERGES)}, nor the number of a block"
        ) from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Convert between runs and the weights that other software loads.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{export,import,loop}")

    export = commands.add_parser(
        "export", help="a run -> a folder for transformers", description="Export a checkpoint of a run."
    )
    add_run(export)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    form = export.add_mutually_exclusive_group()
    form.add_argument("--unroll", action="store_true", help="as a stock model whose layers repeat the shared weights")
    form.add_argument(
        "--format", choices=FORMATS, help="of a published looped model, the weights once; or gguf, unrolled"
    )
    loops = "loops to unroll, or of the other forms; default: the run's"
    export.add_argument("--num-loops", type=positive, metavar="L", help=loops)
    kinds = ("float32", "bfloat16", "float16")
    export.add_argument("--dtype", choices=kinds, default="float32", help="of the weights; default: float32, exact")

    take = commands.add_parser(
        "import", help="a published model -> a run", description="Import a published model as a run."
    )
    model = "folder: config, weights, tokenizer; or a .gguf file"
    take.add_argument("--model", type=Path, required=True, metavar="DIR|FILE", help=model)
    own = "folder with the tokenizer of a .gguf file; default: the one in it"
    take.add_argument("--tokenizer", type=Path, metavar="DIR", help=own)
    take.add_argument("--run", type=Path, required=True, metavar="DIR", help="directory of the run to make")
    take.add_argument("--no-new-tokens", action="store_true", help="do not add <bot> <eot> <latent> <pause>")
    rows = "token whose embedding they begin as ('<<' in Coconut's code); default: the mean of all"
    take.add_argument("--new-tokens-like", metavar="TOKEN", help=rows)

    loop = commands.add_parser(
        "loop", help="an unlooped run -> a looped one", description="Make a looped model of an unlooped one."
    )
    loop.add_argument("--run", type=Path, required=True, metavar="DIR", help="directory of the unlooped run")
    loop.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the run to make")
    loop.add_argument("--num-loop-layers", type=positive, required=True, metavar="K", help="layers of the loop block")
    depth = loop.add_mutually_exclusive_group()
    blocks = "blocks that become one, and loops; default: what is left between prelude and coda"
    depth.add_argument("--num-loops", type=positive, metavar="L", help=blocks)
    depth.add_argument("--num-layers", type=positive, metavar="N", help="instead: layers of weights to end up with")
    for option, which in (("--num-prelude-layers", "first"), ("--num-coda-layers", "last")):
        kept = f"{which} layers that stay as they are; default: where the blocks are most alike, or 0 without L or N"
        loop.add_argument(option, type=at_least(0), metavar="N", help=kept)
    text = "measure on it which layers make the block; default: by the likeness of their weights"
    loop.add_argument("--text", type=Path, metavar="FILE", help=text)
    merge = f"what the loop block is: {', '.join(MERGES)}, or the number of a block, from 0; default: average"
    loop.add_argument(
        "--merge", type=merge_of, default="average", metavar="HOW", help=f"{merge}; none keeps all layers"
    )
    loop.add_argument(
        "--lora-rank", type=positive, metavar="R", help="a LoRA for each loop, from the SVD of differences"
    )
    loop.add_argument("--injection", choices=tuple(INJECTIONS), default="none", help="to begin as the identity")
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> list[str]:
    """Convert; returns the lines to print. Paths are looked at before torch and transformers, which take seconds, are
    imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # folders only: a mistyped one must not be taken for a model to download
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return WORK[options.command](options)


def export(options: argparse.Namespace) -> list[str]:
    require_new(options.out, "folder")
    require_checkpoint(options.run, options.step)
    from pretrain.hf.exporting import export_run

    return export_run(
        options.run, options.out, step=options.step, unroll=options.unroll, published=options.format,
        num_loops=options.num_loops, dtype=options.dtype,
    )  # fmt: skip


def import_published(options: argparse.Namespace) -> list[str]:
    if options.no_new_tokens and options.new_tokens_like is not None:
        raise ValueError("--new-tokens-like says how new tokens begin: leave out --no-new-tokens")
    how = {"new_tokens": not options.no_new_tokens, "new_tokens_like": options.new_tokens_like}
    require_new(options.run)
    if options.model.suffix.lower() == ".gguf" and not options.model.is_dir():
        options.model.stat()
        from pretrain.hf.importing import import_gguf

        return import_gguf(options.model, options.run, tokenizer=options.tokenizer, **how)
    if options.tokenizer is not None:
        raise ValueError("--tokenizer is for a .gguf file; the folder of a model has its own")
    read_config(options.model)
    from pretrain.hf.importing import import_model

    return import_model(options.model, options.run, **how)


def loop(options: argparse.Namespace) -> list[str]:
    require_new(options.out)
    require_checkpoint(options.run)
    from pretrain.hf.surgery import Surgery, loop_model

    names = (
        "num_loop_layers",
        "num_loops",
        "num_layers",
        "num_prelude_layers",
        "num_coda_layers",
        "merge",
        "lora_rank",
    )
    chosen = {name: getattr(options, name) for name in (*names, "injection", "text")}
    return loop_model(options.run, options.out, Surgery(**chosen))


WORK: dict[str, Callable[[Any], list[str]]] = {"export": export, "import": import_published, "loop": loop}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return run_command(lambda: print("\n".join(convert(options))), interrupted="interrupted; nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
