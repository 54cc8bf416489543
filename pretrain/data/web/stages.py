"""The stages from web archives to shards, each a pipeline of datatrove's steps and a few of ours.

1. `filter`: pages of the archives; text of HTML (trafilatura); one language (fastText); Gopher's repetition and quality
   rules, C4's without the one on terminal punctuation, and FineWeb's.
2. `signatures`, `buckets`, `clusters`, `deduplicate`: MinHash; of pages that are nearly the same one stays.
3. `shards`, `report`: our preparation in parts (`pretrain/data/prepare/prepare.py`), the merge, and the table of what
   was dropped and why.

Recipe and thresholds are FineWeb's (Penedo et al. 2024, arXiv:2406.17557, section 3), without its list of addresses.
Files of a stage are in `<output>/<name of the stage>/`, its logs in `<output>/logs/<name of the stage>/`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.lid import FT176LID
from datatrove.utils.word_tokenizers import load_word_tokenizer

from pretrain.data.prepare.claim import Part
from pretrain.data.prepare.prepare import PrepareSettings, merge_parts, prepare_part
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.web.pages import Kind, ReadPages, archive_kind
from pretrain.data.web.report import count_steps, render
from pretrain.storage import write_atomically

PATHS_NAME, REPORT_NAME = "inputs.txt", "report.txt"
MINHASH = MinhashConfig()
EXTRACTION_SECONDS = 10.0
"""A page whose HTML takes longer to read is dropped; most take a few milliseconds."""


@dataclass(frozen=True, kw_only=True)
class CleanSettings:
    """What to clean; all of it belongs to the identity of the result."""

    inputs: tuple[str, ...]
    """Paths or URLs of archives, sorted."""
    output: Path
    """Folder of all that is made."""
    language: str
    """Code of the language to keep, and whose words the filters count."""
    language_model: Path | None
    """fastText's model of languages; None keeps all languages."""
    tokenizer: Path | None
    """Of the shards; None makes shards of text."""
    num_tasks: int
    """Tasks that the archives are divided into."""

    @property
    def kind(self) -> Kind:
        kinds: set[Kind] = {archive_kind(path) for path in self.inputs}
        if len(kinds) != 1:
            raise ValueError("WARC and WET files hold the same pages: give only one kind")
        return kinds.pop()

    def check(self) -> None:
        """Raises ValueError naming what is not there or does not fit."""
        _ = self.kind
        if self.tokenizer is not None:
            Tokenizer.load(self.tokenizer)
        if self.language_model is not None:
            if find_spec("fasttext") is None:
                wheel = "fasttext-numpy2-wheel, which has builds for Python 3.11 and 3.12 alone"
                raise ValueError(f"the language filter needs {wheel}")
            if not self.language_model.is_file():
                hint = "give fastText's language model (lid.176.bin or .ftz)"
                raise ValueError(f"{self.language_model}: no such file; {hint}")
        try:
            load_word_tokenizer(self.language)
        except ImportError as error:
            raise ValueError(f"language {self.language}: {error}") from None
        except ValueError:
            reason = "datatrove has no rules for its words; use a code such as en, de or zh"
            raise ValueError(f"language {self.language}: {reason}") from None


class LanguageModel(FT176LID):
    """A model from a file: datatrove's own way fetches one from the network."""

    def __init__(self, path: Path, language: str) -> None:
        super().__init__([language])
        self.path = path

    @property
    def model(self) -> Any:
        if self._model is None:
            from fasttext.FastText import _FastText  # pyright: ignore[reportMissingImports]

            self._model = _FastText(str(self.path))
        return self._model


class ReadRows(JsonlReader):
    """Reads what an earlier stage wrote; datatrove's own takes a stage that left nothing for a mistake."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        return iter(()) if not self.data_folder.list_files() else super().run(data, rank, world_size)


class MakeShards(PipelineStep):
    """A task does one part of the preparation; with `merge` it joins the parts and writes the report, also when no page
    is left."""

    type: str = "SHARDS"
    name: str = "Shards"

    def __init__(self, settings: CleanSettings, *, merge: bool) -> None:
        super().__init__()
        self.settings, self.merge = settings, merge

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        output = self.settings.output
        rows = output / "deduplicate"
        prepared = PrepareSettings(
            inputs=(f"{rows}/*.jsonl.gz",), output=output / "shards", tokenizer=self.settings.tokenizer, num_workers=0
        )
        is_empty = not any(rows.glob("*.jsonl.gz"))
        if not self.merge:
            if not is_empty:
                prepare_part(prepared, Part(rank + 1, world_size))
            return
        header = None if is_empty else merge_parts(prepared, self.settings.num_tasks).header
        logs = output / "logs"
        counts = [count for stage in ("filter", "deduplicate") for count in count_steps(logs / stage)]
        write_atomically(output / REPORT_NAME, (render(counts, header) + "\n").encode())
        if header is None:
            raise ValueError(f"no page is left; {output / REPORT_NAME} says what dropped them")


@dataclass(frozen=True)
class CleaningStage:
    name: str
    num_tasks: int
    steps: list[Any]


def stages(settings: CleanSettings) -> list[CleaningStage]:
    """All stages, in order."""
    output, language, tasks = settings.output, settings.language, settings.num_tasks
    folders = {name: str(output / name) for name in ("filter", "signatures", "buckets", "clusters", "deduplicate")}
    extractors = {"warc": [Trafilatura(timeout=EXTRACTION_SECONDS)], "wet": []}
    filters: list[Any] = [ReadPages(output / PATHS_NAME, settings.kind), *extractors[settings.kind]]
    if settings.language_model is not None:
        only = LanguageFilter(language)
        only.model = LanguageModel(settings.language_model.absolute(), language)
        filters.append(only)
    filters += [
        GopherRepetitionFilter(language=language),
        # Its stop words are English.
        GopherQualityFilter(language=language, min_stop_words=2 if language in ("en", "eng") else None),
        C4QualityFilter(language=language, filter_no_terminal_punct=False),
        FineWebQualityFilter(language=language),
        JsonlWriter(folders["filter"], adapter=_row),
    ]
    signatures = [ReadRows(folders["filter"]), MinhashDedupSignature(folders["signatures"], MINHASH, language)]
    buckets = [MinhashDedupBuckets(folders["signatures"], folders["buckets"], config=MINHASH)]
    clusters = [MinhashDedupCluster(folders["buckets"], folders["clusters"], config=MINHASH)]
    deduplicate = [
        ReadRows(folders["filter"]), MinhashDedupFilter(folders["clusters"]),
        JsonlWriter(folders["deduplicate"], adapter=_row),
    ]  # fmt: skip
    return [
        CleaningStage("filter", tasks, filters),
        CleaningStage("signatures", tasks, signatures),
        CleaningStage("buckets", MINHASH.num_buckets, buckets),
        CleaningStage("clusters", 1, clusters),
        CleaningStage("deduplicate", tasks, deduplicate),
        CleaningStage("shards", tasks, [MakeShards(settings, merge=False)]),
        CleaningStage("report", 1, [MakeShards(settings, merge=True)]),
    ]


def _row(_: JsonlWriter, document: Document) -> dict[str, Any]:
    return {"text": document.text, "id": document.id, "url": document.metadata["url"]}
