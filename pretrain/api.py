"""A run directory in Python, for notebooks and scripts.

    from pretrain import load_run

    run = load_run("runs/quickstart")
    run.logits("KING HENRY.", num_loops=4)                  # [tokens, vocabulary]
    run.states("KING HENRY.", num_loops=[1, 2, 4])          # [3, tokens, d]
    run.generate("KING HENRY.", num_loops=4)
    run.score(["p_hop"], num_loops=[1, 2, 4])               # a table
    run.metrics()                                           # a table: a row a training step

One process, one device. Tables are pandas' data frames. `run.model` is the module itself, for whatever else there is to
ask; its weights ask for gradients only after `run.model.requires_grad_()`. Fine-tuned runs, with their thoughts:
`finetune/api.py`.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config.run import ParallelSection
from pretrain.device.ranks import world_from_environment
from pretrain.eval.chat import chat_prompt
from pretrain.generation.generate import generate
from pretrain.generation.sampling import Generation
from pretrain.parallel.groups import Groups, make_groups, start_world
from pretrain.rows.evaluation import EvaluationRow, ScoredModel
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.step import MetricsRow, StepRow
from pretrain.run.trained_model import TrainedModel, load_trained_model

if TYPE_CHECKING:
    from pandas import DataFrame

Text = str | Sequence[int] | Tensor
"""A text, or the ids [s] of its tokens."""
Prompts = TypeVar("Prompts", str, list[str])
"""One text, or several; the result is of the same kind."""


def load_run(run_dir: str | Path, *, step: int | None = None, device: str | None = None) -> "LoadedRun":
    """Open a run that was pretrained here, imported or fine-tuned.

    Args:
        run_dir: its directory.
        step: of the checkpoint. Default: the newest good one.
        device: such as "cpu" or "cuda:1". Default: a GPU where there is one.

    Raises:
        ValueError: there is no such run or checkpoint, or it is damaged.
        OSError: a file cannot be read.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained_model(Path(run_dir), torch.device(where), step=step)
    for problem in trained.problems:
        warnings.warn(problem, stacklevel=2)
    return LoadedRun(Path(run_dir), trained)


class LoadedRun:
    """A model with its tokenizer and its rows; `load_run` makes it.

    Args:
        run_dir: directory of the run.
        trained: its model.
    """

    row_type: type[StepRow] = MetricsRow

    def __init__(self, run_dir: Path, trained: TrainedModel) -> None:
        self.run_dir, self.trained = run_dir, trained
        self.model, self.tokenizer, self.step = trained.model.requires_grad_(False), trained.tokenizer, trained.step

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.run_dir}, step {self.step}, {self.num_loops} loops, on {self.device}>"

    @property
    def num_loops(self) -> int:
        """L that the model is made for."""
        return self.model.config.num_loops

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, text: Text) -> Tensor:
        """Ids [s] of a text, with bos where the tokenizer puts one; ids remain what they are.

        Raises:
            ValueError: no token, or ids outside the vocabulary.
        """
        if isinstance(text, str):
            bos = [self.tokenizer.bos_id] if self.tokenizer.adds_bos or not text else []
            text = [*bos, *self.tokenizer.encode(text)]
        ids = torch.as_tensor(text, dtype=torch.int64, device=self.device)
        if ids.dim() != 1 or not len(ids):
            raise ValueError(f"one sequence of token ids is needed, [s], not {list(ids.shape)}")
        lowest, highest, size = int(ids.min()), int(ids.max()), self.model.config.vocab_size
        if not 0 <= lowest <= highest < size:
            raise ValueError(f"token ids {lowest} to {highest}, the vocabulary has {size}")
        return ids

    def tokens(self, text: Text) -> list[str]:
        """The text of each token, for the axis of a figure."""
        return [self.tokenizer.decode([int(token)]) for token in self.encode(text)]

    @torch.no_grad()
    def logits(self, text: Text, *, num_loops: int | None = None) -> Tensor:
        """[s, v] logits of the token after each token of a text.

        Args:
            text: or its ids.
            num_loops: L. Default: that of the model.
        """
        self._require_loops([] if num_loops is None else [num_loops])
        return self.head(self.states(text, num_loops=[num_loops or self.num_loops])[0])

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """[..., d] final states, or thoughts -> [..., v] logits of the tokenizer's tokens: the logit lens."""
        logits = self.model.all_logits(states.flatten(0, -2))[:, : self.tokenizer.vocab_size]
        return logits.unflatten(0, states.shape[:-1])

    @torch.no_grad()
    def states(
        self, text: Text, *, num_loops: Sequence[int] | int | None = None, after: Literal["norm", "loop"] = "norm"
    ) -> Tensor:
        """States of a text at several loop counts, from one pass: [loop counts, s, d].

        Args:
            text: or its ids.
            num_loops: loop counts, at least 1; a number is a list of it. Default: 1 to that of the model.
            after: "norm": of the model that is run with so many loops, after coda and final norm, as the head reads
                them; "loop": as that many passes over the block leave them.

        Raises:
            ValueError: a loop count that this model cannot be run with.
        """
        loops = range(1, self.num_loops + 1) if num_loops is None else _listed(num_loops)
        self._require_loops(loops)
        if not loops:
            raise ValueError("num_loops: no loop count is given")
        tokens = self.encode(text)[None]
        context = self.model.context(tokens)
        passes = [self.model.config.num_passes(count) for count in loops]
        found: dict[int, Tensor] = {}
        combine = self.model.design.residual.combine
        for number, states in enumerate(self.model.passes(tokens, max(passes), context), start=1):
            if number in passes:
                found[number] = self.model.finish(states, context, number) if after == "norm" else combine(states)
        return torch.stack([found[number] for number in passes])

    def generate(
        self, prompts: Prompts, *, num_loops: int | None = None, max_new_tokens: int = 100,
        temperature: float | None = None, top_p: float | None = None, top_k: int | None = None, seed: int = 0,
        chat: bool = False,
    ) -> Prompts:  # fmt: skip
        """Continue a prompt, or several in one batch; the continuations alone, each as if its prompt were alone.

        Args:
            prompts: one text, or several.
            num_loops: L. Default: that of the model.
            max_new_tokens: longest continuation.
            temperature: logits are divided by it; 0 = always the likeliest token. Default: as the model's publisher
                says, as of top_p and top_k; else 0.
            top_p: mass of the likeliest tokens drawn.
            top_k: number of the likeliest tokens drawn; 0 = all.
            seed: of the draws.
            chat: prompts are messages, put into the model's chat template.

        Raises:
            ValueError: a setting is out of range, the model has no positions for so many tokens, or no chat template.
        """
        self._require_loops([] if num_loops is None else [num_loops])
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: needs at least 1")
        sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        given = {name: value for name, value in sampling.items() if value is not None}
        settings = Generation(
            max_new_tokens=max_new_tokens, vocab_size=self.tokenizer.vocab_size, end_ids=self.tokenizer.end_ids,
            num_loops=num_loops, seed=seed, **self.tokenizer.usage.sampling | given,
        )  # fmt: skip
        encode = partial(chat_prompt, self.tokenizer) if chat else lambda prompt: self.encode(prompt).tolist()
        rows = [encode(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
        texts = [self.tokenizer.decode(new) for new in generate(self.model, rows, settings)]
        if isinstance(prompts, str):
            return texts[0]
        return texts

    def score(
        self, tasks: str | Sequence[str], num_loops: Sequence[int] | int | None = None, *,
        num_examples: int | None = None, data_dir: str | Path | None = None, include_path: str | Path | None = None,
        batch: int = 8,
    ) -> "DataFrame":  # fmt: skip
        """Score tasks of the harness or of this project at several loop counts, in one pass: a row a metric.

        Nothing is written; `tools/eval_depth.py` keeps its rows in the run, takes several ranks and continues.

        Args:
            tasks: one name or several, of tasks and groups, or my_module:Task.
            num_loops: loop counts, or one. Default: that of the model.
            num_examples: first examples of each task. Default: all.
            data_dir: folder of evaluation data, for tasks without the network.
            include_path: folder of your tasks in the harness's format.
            batch: sequences run together; changes no number.

        Raises:
            ValueError: an unknown task, one that cannot be had, or a loop count that this model cannot be run with.
        """
        from pretrain.eval import evaluate as evaluation  # the harness takes seconds to import
        from pretrain.eval.groups import ResolvedTask, SkippedTask, tasks_of
        from pretrain.eval.harness import LoopedLM
        from pretrain.eval.loading import load_all
        from pretrain.eval.scorer import Scorer

        loops, folder = list(_listed(num_loops or self.num_loops)), None if data_dir is None else Path(data_dir)
        self._require_loops(loops)
        reader = self.trained.checkpoint
        subject = ScoredModel.of(reader.meta, reader.step, reader.sha256)
        own = None if include_path is None else Path(include_path)
        asked = [tasks] if isinstance(tasks, str) else list(tasks)
        resolved = tasks_of(subject.saved, asked, folder, include_path=own)
        wanted = [task for task in resolved if isinstance(task, ResolvedTask)]
        evaluation.prepare_harness()
        loaded, failed = load_all(wanted, folder, num_examples=num_examples, say=lambda _: None)
        for task in [*resolved, *failed]:
            if isinstance(task, SkippedTask):
                raise ValueError(f"{task.name}: {task.reason}")
        with _lone_world(self.device) as groups, TemporaryDirectory() as folder_of_rows:
            scorer = Scorer(self.model, groups, batch_size=batch)
            lm = LoopedLM(scorer, self.tokenizer, loops, max_length=subject.saved.seq_len)
            file = JsonLines(Path(folder_of_rows) / "none.jsonl")
            results = evaluation.evaluate(
                lm, subject, wanted, lambda task: loaded[task.name], num_examples=num_examples, file=file
            )
            return table([row for _, rows in results for row in rows])

    def metrics(self) -> "DataFrame":
        """The rows of `metrics.jsonl`, one a training step; none for an imported model."""
        return table_of(self.run_dir / "metrics.jsonl", self.row_type)

    def results(self) -> "DataFrame":
        """The rows of `eval/depth.jsonl`: validation and tasks by loop count, as training and tools/eval_depth.py left
        them."""
        return table_of(self.run_dir / "eval" / "depth.jsonl", EvaluationRow)

    def _require_loops(self, loops: Sequence[int]) -> None:
        """Raise a ValueError unless these are loop counts that the model can be run with."""
        for count in loops:
            if not isinstance(count, int):
                raise ValueError(f"num_loops={count}: a loop count is a whole number")
        self.model.config.require_loops("num_loops", loops)


def _listed(counts: Sequence[int] | int) -> Sequence[int]:
    return [counts] if isinstance(counts, int) else counts


def table(rows: Sequence[Any]) -> "DataFrame":
    """Rows as a data frame, without the columns that are empty in all."""
    try:
        from pandas import DataFrame
    except ImportError:
        raise ImportError("tables need pandas: bash tools/setup.sh notebook") from None
    return DataFrame([asdict(row) for row in rows]).dropna(axis="columns", how="all")


def table_of(path: Path, row_type: type[Any]) -> "DataFrame":
    """The rows of a file as a data frame; a warning for each damaged line."""
    file = JsonLines(path)
    found = table(list(file.read(row_type)))
    for problem in file.problems:
        warnings.warn(problem, stacklevel=3)
    return found


@contextmanager
def _lone_world(device: torch.device) -> Iterator[Groups]:
    """The process groups of a world of one, ended afterwards; those of a caller who has some remain."""
    if world_from_environment().size > 1 or (dist.is_initialized() and dist.get_world_size() > 1):
        raise ValueError("this scores in one process; on several ranks: tools/eval_depth.py")
    is_ours = not dist.is_initialized()
    if is_ours:
        start_world()
    try:
        yield replace(make_groups(ParallelSection(), device), device=device)
    finally:
        if is_ours:
            dist.destroy_process_group()
