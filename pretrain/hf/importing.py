"""Import a published model from its folder as a run, which loads at any tensor, pipeline and data parallelism.

1. Read the shape; features that this model cannot compute are refused by name.
2. Read the tokenizer and, by default, add <bot> <eot> <latent> <pause>. Their rows in embedding and head are the mean
   of all rows (Hewitt 2021, "Initializing new word embeddings for pretrained language models"), or those of a given
   token (`<<` in the published code of Coconut), as are the rows that pad the table to a multiple of 8, so that tensor
   parallelism can split it.
3. Map every tensor; one without a rule is dropped, with the reason, or refused if that would change the model.
4. Compare logits with those of transformers on the folder, where it has a class for the model, and save.
"""

import math
import re
from collections.abc import Container
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm import tqdm

from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.published import import_tokenizer
from pretrain.data.tokenizers.sentencepiece import SentencePieceTokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf.architectures import read_dropout, read_shape
from pretrain.hf.check import build, largest_difference, load_published, require_equal
from pretrain.hf.gguf_folder import write_folder
from pretrain.hf.loop_formats.table import format_of
from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig
from pretrain.hf.names import Rule, looped_rules, stock_rules
from pretrain.hf.published_weights import PublishedWeights
from pretrain.hf.report import Fate, describe
from pretrain.hf.weights_run import write_run
from pretrain.model.config import ModelSection
from pretrain.storage import is_there, read_file, require_new

ROWS_MULTIPLE = 8
_BUFFERS = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")
"""Names of constants that old versions of transformers saved with the weights."""
_GROWING = ("embedding.weight", "head.weight")


def import_gguf(
    path: Path, run: Path, *, tokenizer: Path | None = None, new_tokens: bool = True, new_tokens_like: str | None = None
) -> list[str]:
    """Import a model from a GGUF file, by way of a folder beside the run that is removed afterwards; as `import_model`.

    Args:
        path: the file.
        run: new run directory.
        tokenizer: folder with the tokenizer's files of the model. Default: that in the file.
        new_tokens: as of `import_model`, and so `new_tokens_like`.
    """
    require_new(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{run.name}-", dir=run.parent) as name:
        folder = Path(name)
        write_folder(path, folder, tokenizer)
        try:
            return import_model(folder, run, name=str(path), new_tokens=new_tokens, new_tokens_like=new_tokens_like)
        except ValueError as error:  # the folder is none that people know
            raise type(error)(str(error).replace(str(folder), str(path))) from None


def import_model(
    folder: Path, run: Path, *, name: str = "", new_tokens: bool = True, new_tokens_like: str | None = None
) -> list[str]:
    """Import a published model; returns lines that describe the result.

    Args:
        folder: folder of the published model.
        run: new run directory.
        name: of the model, in what is said of it. Default: the folder.
        new_tokens: add the tokens for latent thoughts.
        new_tokens_like: the token whose rows they begin as. Default: the mean of all rows.

    Raises:
        ValueError: the model is not supported, the folder is damaged, or the check failed; no run is left.
        OSError: reading or writing failed.
    """
    require_new(run)
    model_type, shape, seq_len = read_shape(folder)
    published = PublishedWeights(folder)
    content = _tokenizer(folder, shape.vocab_size, new_tokens)
    tokenizer = Tokenizer.from_bytes(content)
    like = None if new_tokens_like is None else _id_of(new_tokens_like, tokenizer, shape.vocab_size)
    rows = shape.vocab_size
    if tokenizer.vocab_size > rows:  # tokens were added
        rows = math.ceil(tokenizer.vocab_size / ROWS_MULTIPLE) * ROWS_MULTIPLE
    model = shape.model_copy(update={"vocab_size": rows})
    weights, fates, dtypes = read_weights(published, model_type, shape, seq_len)
    for table in _GROWING:
        if table in weights and rows > shape.vocab_size:
            weights[table], fate = _grow(table, weights[table], rows, like)
            fates.append(fate)
    ours = build(model, seq_len, weights.__getitem__)
    name = name or str(folder)
    if format_of(model_type) is None:
        difference = largest_difference(ours, load_published(folder, model_type), seq_len, shape.vocab_size)
        check = require_equal(difference, name)
    else:
        check = (
            f"logits were not compared: transformers has no class for model_type={model_type}, and code of the folder "
            "is not run"
        )
    precision = "bf16" if dtypes == {torch.bfloat16} else "fp32"
    suffix = ".model" if isinstance(tokenizer, SentencePieceTokenizer) else ".json"
    saved = SavedModel(
        run=run.name, model=model, seq_len=seq_len, precision=precision, max_loops=model.num_loops,
        tokenizer=str(run / f"tokenizer{suffix}"),
    )  # fmt: skip
    totals = write_run(run, saved, content, weights, fates, f"{run} <- {name} ({model_type})")
    first = f"{run}: {model_type}, {shape.effective_depth()} layers deep, {rows} rows of vocabulary; {totals}"
    return [first, *_dropout_line(folder), check]


def _tokenizer(folder: Path, num_rows: int, new_tokens: bool) -> bytes:
    """Content of our own tokenizer if the folder has one (an export of a run), else of a published one."""
    path = folder / "tokenizer.model"
    if is_there(path):
        try:
            return SentencePieceTokenizer(read_file(path)).model
        except ValueError:
            pass  # a SentencePiece model, but not one of this project
    return import_tokenizer(folder, new_tokens=new_tokens, first_new_id=num_rows if new_tokens else None)


def _id_of(token: str, tokenizer: Tokenizer, num_published: int) -> int:
    """The id of a token that the published model knows, given as text."""
    ids = tokenizer.encode(token)
    if len(ids) != 1 or ids[0] >= num_published:
        raise ValueError(f"new tokens like {token!r}: the tokenizer makes {len(ids)} tokens of it, not one of its own")
    return ids[0]


def _dropout_line(folder: Path) -> list[str]:
    """What becomes of the dropout that the model was trained with."""
    rates = read_dropout(folder)
    named = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    most = max(rates.values(), default=0.0)
    return [f"{named}: not of the model here; train.dropout={most:g} fine-tunes with it"] if most else []


def read_weights(
    published: PublishedWeights, model_type: str, model: ModelSection, seq_len: int
) -> tuple[dict[str, Tensor], list[Fate], set[torch.dtype]]:
    """Every tensor of a published model by our name, in fp32; what became of each stored one; and their types."""
    if (form := format_of(model_type)) is not None:
        rules, constants = form.rules(model, seq_len), set(form.constants(model, seq_len))
    elif model_type == LoopedGPTConfig.model_type:
        rules, constants = looped_rules(model, seq_len), set()
    else:
        rules, constants = stock_rules(model_type, model, 1, seq_len), set()
    return _map(rules, published, constants)


def _map(
    rules: list[Rule], published: PublishedWeights, constants: Container[str]
) -> tuple[dict[str, Tensor], list[Fate], set[torch.dtype]]:
    weights: dict[str, Tensor] = {}
    fates: list[Fate] = []
    dtypes: set[torch.dtype] = set()
    names = _present_names(rules, published)
    missing = [rule.theirs for rule in rules if rule.theirs not in names]
    if missing:
        raise ValueError(
            f"{published.folder}: {len(missing)} tensors of the model are missing, the first is {missing[0]}"
        )
    for rule in tqdm(rules, desc="import", unit="tensor", disable=None):
        stored = published.read(names.pop(rule.theirs))
        if tuple(stored.shape) != rule.shape:
            raise ValueError(
                f"{published.folder}: {rule.theirs} has shape {list(stored.shape)}, "
                f"config.json makes it {list(rule.shape)}"
            )
        if not stored.is_floating_point():
            raise ValueError(
                f"{published.folder}: {rule.theirs} is {stored.dtype}: quantised weights are not supported"
            )
        dtypes.add(stored.dtype)
        for name, part in zip(rule.ours, rule.split(stored), strict=True):
            weights[name] = part.float()
        fates.append(Fate("mapped", " + ".join(rule.ours), rule.theirs, describe(rule.shape, stored.dtype)))
    fates += [Fate("dropped", "", name, _why_dropped(name, published, weights, constants)) for name in names.values()]
    return weights, fates, dtypes


def _present_names(rules: list[Rule], published: PublishedWeights) -> dict[str, str]:
    """Stored name of each tensor by its name in the rules; files of the bare model lack the prefix of the class."""
    rule_names = {rule.theirs for rule in rules}
    stems = {name.split(".")[0] for name in rule_names} & {"model", "transformer"}
    return {
        next((f"{stem}.{name}" for stem in stems if f"{stem}.{name}" in rule_names), name): name
        for name in published.names
    }


def _why_dropped(name: str, published: PublishedWeights, weights: dict[str, Tensor], constants: Container[str]) -> str:
    """The reason why a tensor is not needed; raises a ValueError if it is."""
    if name in constants or _BUFFERS.fullmatch(name):
        return "a constant of the computation"
    if name == "lm_head.weight":  # the configuration says that the head is the embedding, else it had a place
        if torch.equal(published.read(name).float(), weights["embedding.weight"]):
            return "the head is the embedding"
        raise ValueError(
            f"{published.folder}: config.json ties the head to the embedding, but {name} differs from it: set "
            "tie_word_embeddings to false there, or remove the tensor"
        )
    raise ValueError(
        f"{published.folder}: {name} has no place in this model: it is not one of the supported architectures"
    )


def _grow(name: str, table: Tensor, rows: int, like: int | None) -> tuple[Tensor, Fate]:
    """Append rows equal to row `like` or to the mean of the existing ones, up to `rows` in total."""
    number = rows - table.shape[0]
    row, source = (table.mean(0), "the mean of all rows") if like is None else (table[like], f"row {like}")
    whole = torch.cat((table, row.expand(number, -1)))
    return whole, Fate("made", name, source, f"rows {table.shape[0]} to {rows - 1}: {number}")
