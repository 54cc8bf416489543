"""Options of commands with values that cannot be."""

from collections.abc import Iterator

from tests.malformed.case import BEYOND_64_BITS, Case

RUN, TUNED = ("--run", "{world}/pretrained"), ("--run", "{world}/finetuned")
NUMBERS: dict[str, tuple[tuple[str, ...], str]] = {
    "eval_depth": (RUN, "--tensor --pipeline --batch --num-examples --num-loops"),
    "generate": ((*RUN, "--prompt", "1"), "--num-loops --max-new-tokens --batch"),
    "eval_coconut": (TUNED, "--num-loops --batch --num-examples"),
    "latent_search": (TUNED, "--batch --num-examples"),
    "prepare_data": (
        ("--input", "{world}/text.jsonl", "--output", "{here}/out", "--keep-text"),
        "--shard-documents --shard-tokens --merge",
    ),
    "train_tokenizer": (
        ("--input", "{world}/text.jsonl", "--output", "{here}/t.model", "--vocab-size", "300"),
        "--vocab-size --max-sentences",
    ),
    "convert_checkpoint": (("export", *RUN, "--out", "{here}/out"), "--num-loops"),
}  # fmt: skip
"""Command, its other arguments, its options that are numbers from 1 on."""
OTHERS: dict[str, tuple[tuple[str, ...], str]] = {
    "eval_depth": (RUN, "--step=-1 --step=x --num-loops=1,x --tensor=2 --tensor=3 --pipeline=2 --pipeline=3 --step=3 "
        "--data-dir={here}/nope --num-loops=999999999999"),
    "generate": ((*RUN, "--prompt", "1"), "--step=-1 --temperature=x --top-p=x --seed=1.5 --num-loops=999999999999 "
        "--step=3 --temperature=nan --temperature=-1 --top-p=nan --top-p=2 --tokenizer={here}/nope "
        "--prompt-file={here}/nope"),
    "eval_coconut": (TUNED, "--latents=-1 --latents=x --step=x --split=nope --num-loops=999999999999 "
        "--data={here}/nope"),
    "prepare_data": (NUMBERS["prepare_data"][0], "--workers=-1 --part=0/2 --part=3/2 --part=x --part=1"),
    "sweep": (("{world}/sweep.yaml",), "--cell=x --stage=nope"),
    "convert_checkpoint": (NUMBERS["convert_checkpoint"][0], "--dtype=float8"),
    "scaling_plot": (("{world}/rows.jsonl", "--out", "{here}/out"), "--metric=nope"),
    "coconut_table": (("{world}/finetuned",), "--split=nope"),
}  # fmt: skip
"""Command, its other arguments, and options with values that cannot be."""
TORCH = ("=2", "=3", "nope", "999", "nan", "temperature=-1", "top-p=2")
"""Ends of options that need the checkpoint to be refused."""
SAID_AS = {"--num-loops": "loops", "--temperature": "temperature", "--top-p": "top", "--step": "step"}
LIGHT = ("--split=nope", "--stage=nope", "--metric=nope", "--prompt-file={here}/nope")


def cases() -> Iterator[Case]:
    for command, (arguments, options) in NUMBERS.items():
        for option in options.split():
            for value in ("0", "-1", "x", "1.5", "", BEYOND_64_BITS):
                yield Case(
                    name=f"{option}={value}", command=f"tools.{command}", arguments=(*arguments, f"{option}={value}"),
                    words=(f"error: {option}: needs ",), most_lines=1, is_light=True,
                )  # fmt: skip
        unknown = (*arguments, "--nope")
        yield Case(
            name="an unknown option", command=f"tools.{command}", arguments=unknown, words=("--nope",), is_light=True
        )
        yield Case(name="nothing", command=f"tools.{command}", arguments=(), words=("--help",), is_light=True)
    for command, (arguments, options) in OTHERS.items():
        for option in options.split():
            name, _, value = option.partition("=")
            is_light = option in LIGHT or not option.endswith(TORCH) or command in ("sweep", "coconut_table")
            words = "nope" if "nope" in value else SAID_AS.get(name, name)
            yield Case(
                name=option, command=f"tools.{command}", arguments=(*arguments, option), words=(words,),
                is_light=is_light,
            )  # fmt: skip
    for command in ("status", "scaling_plot", "coconut_table", "sweep", "generate", "eval_depth"):
        yield Case(
            name="an unknown option alone",
            command=f"tools.{command}",
            arguments=("--nope",),
            words=("error: ",),
            is_light=True,
        )
