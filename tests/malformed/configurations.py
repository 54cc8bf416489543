"""Malformed configuration files and command lines."""

from collections.abc import Iterator

from tests.malformed.case import BEYOND_64_BITS, DEEP_LIST, DEEP_MAP, Case, both_ways, finetune, train


def sweep(name: str, text: str | bytes, *words: str) -> Case:
    return Case(
        name=name, command="tools.sweep", arguments=("{here}/a.yaml", "--print"), files={"a.yaml": text}, words=words,
        is_light=True,
    )  # fmt: skip


def nesting() -> Iterator[Case]:
    """YAML in which lists or maps are nested without end, or refer to themselves."""
    deep = "nested too deeply"
    for what, text in {
        "lists": DEEP_LIST, "maps": DEEP_MAP, "lists in lines": "- " * 50_000, "a value": "train: {steps: " + DEEP_LIST,
    }.items():  # fmt: skip
        file, base = {"a.yaml": text}, {"a.yaml": "base: b.yaml", "b.yaml": text}
        at = ("--config", "{here}/a.yaml")
        yield train(f"--config with nested {what}", *at, files=file, words=("a.yaml", deep), is_light=True)
        yield train(f"base: with nested {what}", *at, files=base, words=("b.yaml", deep), is_light=True)
        yield finetune(f"--config with nested {what}", *at, files=file, words=("a.yaml", deep), is_light=True)
        yield sweep(f"nested {what}", text, "a.yaml", deep)
    for key in ("train.steps", "data.sources", "validation.num_loops", "run.name"):
        yield train(f"nested lists for {key}", f"{key}={DEEP_LIST}", words=(key, deep), is_light=True)
    task = "data.sources=[{task: addition, parameters: "
    yield train(
        "nested parameters of a task", task + DEEP_MAP[:100_000] + "}]", words=("data.sources", deep), is_light=True
    )
    closed = "[" * 400 + "]" * 400
    yield train("closed lists", f"validation.num_loops={closed}", words=("validation.num_loops", deep), is_light=True)
    aliases = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*{f'b{n - 1}' if n else 'a'}, *a]\n" for n in range(9))
    for what, text, said in (
        ("aliases", aliases, "an alias"), ("a key twice", "run: {seed: 1, seed: 2}\n", "given twice"),
        ("a section twice", "run: {seed: 1}\nrun: {}\n", "given twice"), ("itself", "run: &a [*a]", "an alias"),
    ):  # fmt: skip
        yield from both_ways(
            what, "--config", "{here}/a.yaml", files={"a.yaml": text}, words=("a.yaml:", said), is_light=True
        )
        yield sweep(what, text.replace("run:", "evaluation:").replace("seed:", "data_dir:"), "a.yaml:", said)


def bytes_of_files() -> Iterator[Case]:
    """Files that are not the text that they should be."""
    for what, content, said in (
        ("binary", bytes(range(256)), "not UTF-8"), ("Latin-1", b"run: {name: caf\xe9}", "not UTF-8"),
        ("UTF-16", "run: {}".encode("utf-16"), "not UTF-8"), ("a NUL", b"run:\x00 {}", "not valid YAML"),
        ("a tab", b"run:\n\tname: a", "not valid YAML"), ("a list", b"- 1\n- 2\n", "needs keys and values"),
        ("a number", b"3\n", "needs keys and values"), ("an open quote", b"run: {name: 'a", "not valid YAML"),
        ("a tag", b"run: !!python/object/apply:os.system [x]", "a.yaml"), ("cut", b'{"run": {"a":', "not valid YAML"),
        ("two documents", b"run: {}\n---\nrun: {}\n", "not valid YAML"), ("a lone bracket", b"}", "not valid YAML"),
    ):  # fmt: skip
        at, files = ("--config", "{here}/a.yaml"), {"a.yaml": content}
        yield from both_ways(f"--config: {what}", *at, files=files, words=("a.yaml", said), is_light=True)
        yield finetune(f"--config: {what}", *at, files=files, words=("a.yaml", said), is_light=True)
        yield train(
            f"base: {what}", *at, files={"a.yaml": "base: b.yaml", "b.yaml": content}, words=("b.yaml",), is_light=True
        )
        yield sweep(what, content, "a.yaml")


COMMAND_LINES: dict[str, tuple[str, tuple[str, ...]]] = {
    "an unknown option": ("--nope", ("--nope", "unknown option")),
    "an override with dashes": ("--train.steps=3", ("write train.steps=3",)),
    "a word": ("quickly", ("quickly", "neither option nor override")),
    "a file without --config": ("a.yaml", ("a.yaml", "--config a.yaml")),
    "no key": ("=3", ("command line",)),
    "no value": ("train.steps=", ("train.steps", "whole number")),
    "an unknown key": ("train.setps=3", ("train.setps", "did you mean train.steps?")),
    "an unknown section": ("trian.steps=3", ("trian", "did you mean train?")),
    "a key of a value": ("train.steps.more=3", ("train.steps",)),
    "a section as a value": ("train=3", ("train", "needs keys and values")),
    "a word for a number": ("train.steps=abc", ("train.steps", "whole number", "abc")),
    "a half for a whole number": ("train.steps=1.5", ("train.steps", "whole number", "1.5")),
    "a word for a choice": ("train.precision=fp31", ("train.precision", "fp32")),
    "a word for true or false": ("train.compile=abc", ("train.compile", "true or false")),
    "a number for a list": ("validation.num_loops=3", ("validation.num_loops", "needs a list")),
    "a word in a list": ("validation.num_loops=[1, x]", ("validation.num_loops[1]", "x")),
    "a map for a number": ("train.steps={a: 1}", ("train.steps", "whole number")),
    "not a number": ("optimizer.lr=nan", ("optimizer.lr", "nan")),
    "infinity": ("optimizer.lr=inf", ("optimizer.lr", "inf")),
    "beyond the largest float": ("optimizer.lr=1e999", ("optimizer.lr",)),
    "a negative number": ("optimizer.lr=-1", ("optimizer.lr", "-1")),
    "no auto, never or step": ("checkpoint.resume=abc", ("checkpoint.resume", "auto", "whole number", "abc")),
    "a negative step": ("checkpoint.resume=-1", ("checkpoint.resume", "-1")),
    "half a step": ("checkpoint.resume=1.5", ("checkpoint.resume", "1.5")),
    "a lone surrogate": ("run.name=\udcff", ("run.name",)),
    "a name with a slash": ("run.name=a/b", ("run.name", "letters")),
    "a name of dots": ("run.name=..", ("run.name", "letters")),
    "a key in a name": ("run.name='{train.setps}'", ("run.name", "train.setps", "did you mean train.steps?")),
    "5,000 digits": (f"train.steps={'9' * 5000}", ("train.steps",)),
    "an open bracket": ("train.steps=[1", ("train.steps", "not valid YAML")),
}


def command_lines() -> Iterator[Case]:
    """Options and overrides that are none."""
    for what, (argument, words) in COMMAND_LINES.items():
        yield from both_ways(what, argument, words=words, most_lines=1, is_light=True)
        if argument.startswith(("--", "run", "=", "quick", "a.")):
            words = ("run.name", "train.setps") if "setps}" in argument else words
            yield finetune(what, argument, words=words, most_lines=1, is_light=True)
    for value in ("0", "-1", "abc", "1.5", BEYOND_64_BITS):
        words = ("--world-size", value)
        yield train(f"--world-size {value}", "--dry-run", "--world-size", value, words=words, is_light=True)
        words = ("--local_rank", value)
        if value != "0":
            yield train(f"--local_rank {value}", "--local_rank", value, words=words, is_light=True)
    yield train("--world-size, no dry run", "--world-size", "2", words=("--world-size", "--dry-run"), is_light=True)
    yield train("a missing file", "--config", "{here}/a.yaml", words=("a.yaml", "No such file"), is_light=True)
    yield train("a folder", "--config", "{here}", words=("Is a directory",), is_light=True)
    arguments = ("--config",)
    yield Case(name="no file", command="pretrain.train", arguments=arguments, words=("--config",), is_light=True)
    for text in ("symbols:aab", "symbols:"):
        yield train(f"{text!r}", f"data.tokenizer='{text}'", words=("symbols:",))
        yield finetune(f"{text!r}", f"data.tokenizer='{text}'", words=("symbols:",))
    surrogate = ("data.tokenizer", "#xdcff")
    for text in ("symbols:a\udcff", "\udcff"):
        yield train(f"a lone surrogate in {text!r}", f"data.tokenizer='{text}'", words=surrogate, is_light=True)
        yield finetune(f"a lone surrogate in {text!r}", f"data.tokenizer='{text}'", words=surrogate, is_light=True)
    endless = "a" * 5000
    config = ("--config", endless)
    yield train("--config without end", *config, words=("aaa", "name too long"), most_lines=1, is_light=True)
    yield train("a path without end", f"data.tokenizer={endless}", words=("aaa", "name too long"))


def sweeps() -> Iterator[Case]:
    """Files of sweeps."""
    for what, text, words in (
        ("a wrong override", "models: [{num_loop_layers: 1}]\noverrides: [train.setps=3]", ("train.steps?",)),
        ("an unknown key", "model: []", ("a.yaml:2: model: unknown key, did you mean models?",)),
        ("models and methods", "models: [{num_loop_layers: 1}]\nmethods: {coconut: []}", ("models or methods",)),
        ("layers without end", "models: [{num_loop_layers: 100000000, num_loops: 4}]", ("layers deep",)),
        ("loops beyond 64 bits", f"models: [{{num_loop_layers: 1, num_loops: {BEYOND_64_BITS}}}]", ("num_loops",)),
        ("ranks beyond 64 bits", f"models: [{{num_loop_layers: 1}}]\nranks: {BEYOND_64_BITS}", ("ranks",)),
        ("seeds of words", "models: [{num_loop_layers: 1}]\nseeds: [a]", ("seeds", "whole number")),
        ("a map of seeds", "models: [{num_loop_layers: 1}]\nseeds: {a: 1}", ("seeds",)),
    ):  # fmt: skip
        yield sweep(what, f"config: {{world}}/train.yaml\n{text}\n", *words)
    yield sweep("a missing configuration", "config: {here}/b.yaml\nmodels: [{num_loop_layers: 1}]", "b.yaml")
    yield Case(
        name="a run that is not there", command="tools.sweep", arguments=("{world}/sweep.yaml", "--cell", "9"),
        words=("--cell 9",), is_light=True,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    for kind in (nesting, bytes_of_files, command_lines, sweeps):
        yield from kind()
