"""What surrounds a command and is malformed: symbolic links in a circle, variables of launchers that are words."""

from collections.abc import Iterator

from tests.malformed.case import Case, both_ways, finetune, train


def links() -> Iterator[Case]:
    """Symbolic links in a circle."""
    circle, two = {"loop": "{here}/loop"}, {"a": "{here}/b", "b": "{here}/a"}
    said = "symbolic links"
    here = "{here}/loop"
    yield from both_ways("--config in a circle", "--config", here, links=circle, words=("loop", said), is_light=True)
    yield train("--config in a circle of two", "--config", "{here}/a", links=two, words=("/a", said), is_light=True)
    yield finetune("--config in a circle", "--config", here, links=circle, words=("loop", said), is_light=True)
    for name, files, at in (("base:", "base: loop", circle), ("base: of two", "base: a", two)):
        yield train(
            f"{name} in a circle", "--config", "{here}/a.yaml", files={"a.yaml": files}, links=at,
            words=("a.yaml:1: base:", said), is_light=True,
        )  # fmt: skip
    for key in ("data.tokenizer={}", "data.sources=[{{path: {}}}]", "checkpoint.init_from={}"):
        yield train(f"{key.partition('=')[0]} in a circle", key.format(here), links=circle, words=("loop", said))
    yield finetune("a tokenizer in a circle", f"data.tokenizer={here}", links=circle, words=("loop", said))
    examples = f"data.train={{path: {here}, task: null, num_examples: null, parameters: {{}}}}"
    yield finetune("examples in a circle", examples, links=circle, words=("loop",))
    for name in ("runs", "runs/tiny"):
        yield train(f"{name} in a circle", links={name: f"{{here}}/{name}"}, words=(name, said))
    yield train(
        "metrics.jsonl in a circle", links={"runs/tiny/metrics.jsonl": "{here}/runs/tiny/metrics.jsonl"}, code=1,
        words=("metrics.jsonl", said),
    )  # fmt: skip
    run = ("--run", here)
    for tool, arguments, light in (
        ("sweep", (here, "--print"), True), ("generate", (*run, "--prompt=a"), False), ("eval_depth", run, False),
        ("eval_coconut", run, False), ("convert_checkpoint", ("export", *run, "--out", "{here}/out"), False),
        ("convert_checkpoint", ("import", "--model", here, "--run", "{here}/new"), False),
        ("scaling_plot", (here,), True), ("coconut_table", (here,), True),
    ):  # fmt: skip
        yield Case(
            name=f"{arguments[0]} in a circle", command=f"tools.{tool}", arguments=arguments, links=circle,
            words=("loop", said), is_light=light,
        )  # fmt: skip
    yield Case(
        name="text in a circle", command="tools.prepare_data", links=circle, words=("loop",), is_light=True,
        arguments=("--input", here, "--output", "{here}/out", "--keep-text", "--workers", "0"),
    )  # fmt: skip
    yield Case(
        name="a folder of runs in a circle", command="tools.status", arguments=(here,), links=circle,
        words=("loop", "no such folder"), is_light=True,
    )  # fmt: skip
    yield Case(
        name="runs in folders in a circle", command="tools.status", arguments=("{here}",), copies=("pretrained",),
        links={"pretrained/runs": "{here}", "self": "{here}"}, words=("pretrained  complete",), code=0, is_light=True,
    )  # fmt: skip


def environments() -> Iterator[Case]:
    """Variables of launchers that are words, or numbers that do not go together."""
    one = {"RANK": "0", "WORLD_SIZE": "1"}
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    two = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    evaluation = ("--run", "{world}/pretrained", "--out", "{here}/rows.jsonl", "--num-examples", "2")
    wrong = [
        (base | {name: value}, name, value)
        for base, names in ((one, "RANK WORLD_SIZE LOCAL_RANK"), (slurm, "SLURM_PROCID SLURM_NTASKS SLURM_LOCALID"))
        for name in names.split()
        for value in ("x", "-1", "1.5", "", "9" * 30, *(("0",) if name in ("WORLD_SIZE", "SLURM_NTASKS") else ()))
    ]
    wrong += [(two | {"MASTER_PORT": value}, "MASTER_PORT", value) for value in ("x", "-1", "0", "70000", "1.5", "")]
    for environment, name, value in wrong:
        words = ("error: environment: ", f"{name}={value} ")
        yield train(f"{name}={value!r}", environment=environment, words=words, is_light=True)
        if value == "x":
            yield finetune(f"{name}={value!r}", environment=environment, words=words, is_light=True)
            yield Case(
                name=f"{name}={value!r}", command="tools.eval_depth", arguments=evaluation, environment=environment,
                words=words,
            )  # fmt: skip
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        words = ("environment", f"{name}=abc")
        yield train(f"{name}=abc, dry run", "--dry-run", environment={name: "abc"}, words=words, is_light=True)
    beyond, alone = {**two, "RANK": "5"}, {"RANK": "0", "WORLD_SIZE": "2"}
    yield train("RANK beyond WORLD_SIZE", environment=beyond, words=("RANK=5", "WORLD_SIZE=2"), is_light=True)
    yield train("two ranks without MASTER_ADDR", environment=alone, words=("MASTER_ADDR",), is_light=True)
    nameless = {name: value for name, value in two.items() if name != "MASTER_PORT"}
    yield train("two ranks without MASTER_PORT", environment=nameless, words=("MASTER_PORT",), is_light=True)


def cases() -> Iterator[Case]:
    yield from links()
    yield from environments()
