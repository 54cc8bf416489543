"""Cleaning of web archives: what is bad or said twice goes, the report says why, and the loader reads what is left."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.manifest import Manifest
from pretrain.data.shards import open_index, read_document
from pretrain.data.stream.loader import Loader
from pretrain.data.web.pages import ReadPages, archive_kind
from pretrain.data.web.report import count_steps
from pretrain.data.web.runs import run_here
from pretrain.data.web.stages import CleanSettings
from tests.support.corpus import make_data, make_tokenizer
from tests.support.web_archives import GERMAN, page, write_language_model, write_warc, write_wet

ROOT = Path(__file__).parents[3]
GOOD = [page(seed) for seed in range(16)]
NEAR = GOOD[3].replace("River", "Stream").replace(" river ", " stream ", 1) + "\n" + page(700, sentences=1)
SHORT = page(800, sentences=3)
BREATHLESS = page(801).replace(".", ",")


NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    raise SystemExit("the network was asked")
socket.getaddrinfo = socket.create_connection = refuse
"""


def clean(*arguments: str | Path, first_on_path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/clean_web.py", *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": f"{first_on_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def settings_of(output: Path, *inputs: Path, **changes: object) -> CleanSettings:
    usual = {"language": "en", "language_model": None, "tokenizer": None, "num_tasks": len(inputs)}
    return CleanSettings(**{"inputs": tuple(map(str, inputs)), "output": output, **usual, **changes})  # type: ignore[arg-type]


def ignore(line: str) -> None:
    """Progress that nobody watches."""


def texts(shards: Path) -> list[str]:
    manifest = Manifest.open(shards)
    found = []
    for number in range(len(manifest)):
        row = manifest[number]
        with (shards / row.shard).open("rb") as file:
            found += [bytes(read_document(file, entry, 0)).decode() for entry in open_index(shards, row)]
    return found


def reasons(output: Path) -> dict[str, dict[str, int]]:
    counts = [count for stage in ("filter", "deduplicate") for count in count_steps(output / "logs" / stage)]
    return {count.step: count.reasons for count in counts if count.reasons}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.version_info >= (3, 13):
        pytest.skip("fastText's package has no build for this Python")
    return write_language_model(tmp_path_factory.mktemp("model") / "lid.bin")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> tuple[Path, str]:
    """The output folder and report of two WET files, one of them cut off, made where every use of the network ends the
    process."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    write_wet(folder / "a.warc.wet.gz", [*GOOD[:8], page(500, GERMAN), SHORT, " \n ", GOOD[5], BREATHLESS])
    whole = write_wet(
        folder / "b.warc.wet.gz",
        [*GOOD[8:], NEAR, GOOD[9], "the river of the morning " * 60, "{ " + page(600), page(999)],
    ).read_bytes()
    (folder / "b.warc.wet.gz").write_bytes(whole[:-200])
    arguments = (
        "--input",
        f"{folder}/*.wet.gz",
        "--output",
        folder / "out",
        "--language-model",
        language_model,
        "--keep-text",
    )
    done = clean(*arguments, "--workers", "1", first_on_path=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_good_pages_stay_once_and_the_rest_goes(cleaned: tuple[Path, str]) -> None:
    output, _ = cleaned
    kept = texts(output / "shards")
    assert sorted(kept) == sorted([*GOOD[:3], *GOOD[4:], NEAR if NEAR in kept else GOOD[3]])


def test_the_report_says_what_was_dropped_and_why(cleaned: tuple[Path, str]) -> None:
    output, printed = cleaned
    assert reasons(output) == {
        "Pages of the archives": {"empty": 1, "rest_of_a_damaged_archive": 1},
        "Language ID": {"another language": 1},
        "Gopher Repetition": {"top_2_gram": 1},
        "Gopher Quality": {"gopher_short_doc": 1},
        "C4 Quality": {"too_few_sentences": 1, "curly_bracket": 1},
        "MinHash": {"near duplicate": 3},
    }
    assert (output / "report.txt").read_text() == printed
    table = [line.split() for line in printed.splitlines()]
    assert ["MinHash", "19", "3", "15.8", "3", "near", "duplicate"] in table
    assert printed.endswith("kept: 16 pages of 26 (61.5 %) in 1 shards\n")


def html(text: str, encoding: str = "utf-8") -> bytes:
    paragraphs = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    menu = "<nav><ul>" + "<li><a href='/'>home</a></li>" * 20 + "</ul></nav>"
    return f"<html><head><title>x</title></head><body>{menu}<article>{paragraphs}</article></body></html>".encode(
        encoding
    )


def test_html_becomes_text_that_the_loader_reads(tmp_path: Path) -> None:
    accented = page(900).replace("garden", "gardén")
    responses = [("text/html; charset=utf-8", html(text)) for text in GOOD[:6]]
    responses += [
        ("text/html; charset=iso-8859-1", html(accented, "latin-1")),
        ("image/png", b"\x89PNG"),
        ("text/html", html(GOOD[2])),
    ]
    write_warc(tmp_path / "a.warc.gz", responses)
    tokenizer = make_tokenizer(tmp_path / "t.model")
    output = tmp_path / "out"
    wanted = settings_of(output, tmp_path / "a.warc.gz", tokenizer=tmp_path / "t.model")
    report = run_here(wanted, 1, ignore)
    assert "Trafilatura" in report
    assert reasons(output) == {"Pages of the archives": {"not_HTML": 1}, "MinHash": {"near duplicate": 1}}
    with gzip.open(output / "deduplicate" / "00000.jsonl.gz", "rt", encoding="utf-8") as lines:
        kept = {json.loads(line)["text"] for line in lines}
    assert kept == {*GOOD[:6], accented}
    expected = sum(len(tokenizer.encode(text)) for text in kept)
    assert Manifest.open(output / "shards").header.num_tokens == expected

    loader = Loader(
        make_data(tmp_path / "t.model", output / "shards"), seed=0, seq_len=64, global_batch=8, rank=0, num_ranks=1
    )
    assert loader.next_batch().shape == (8, 2, 64)
    loader.close()

    assert run_here(wanted, 1, ignore) == report
    with pytest.raises(ValueError, match="out: was begun with another num_tasks; delete it or name a new folder"):
        run_here(replace(wanted, num_tasks=2), 1, ignore)


def test_an_interrupted_call_is_continued_and_its_counts_are_whole(tmp_path: Path) -> None:
    """A task of the first stage fails after the other is done, because its archive is not there; then it is."""
    first, second = write_wet(tmp_path / "a.wet", GOOD[:4]), write_wet(tmp_path / "b.wet", [*GOOD[4:8], GOOD[0]])
    wanted = settings_of(tmp_path / "out", first, second, num_tasks=2)
    second.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        run_here(wanted, 1, ignore)
    (tmp_path / "away").rename(second)
    report = run_here(wanted, 1, ignore)
    assert sorted(texts(tmp_path / "out" / "shards")) == sorted(GOOD[:8])
    assert report.endswith("kept: 8 pages of 9 (88.9 %) in 1 shards")


def test_when_no_page_is_left_the_report_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no page is left; .*/out/report\.txt says what dropped them"):
        run_here(settings_of(tmp_path / "out", write_wet(tmp_path / "a.wet", ["", SHORT])), 1, ignore)
    assert (tmp_path / "out" / "report.txt").read_text().endswith("kept: no page\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ("a.wet", "b.warc.gz")}, "WARC and WET files hold the same pages: give only one kind"),
        ({"inputs": ("a.jsonl",)}, r"a\.jsonl: not a \.warc or \.wet file"),
        (
            {"language_model": Path("none.bin")},
            r"needs fasttext-numpy2-wheel|none\.bin: no such file; give fastText's language model",
        ),
        (
            {"language": "english"},
            "language english: datatrove has no rules for its words; use a code such as en, de or zh",
        ),
        ({"language": "th"}, r"language th: Please install `pythainlp`"),
        ({"tokenizer": Path("none.model")}, r"none\.model"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        settings_of(tmp_path, **{"inputs": ("a.wet",), **changes}).check()  # type: ignore[arg-type]


def pages_of(path: Path) -> tuple[list[str], int]:
    """Texts of the pages of an archive, and how many damaged archives were counted."""
    (path.parent / "inputs.txt").write_text(f"{path}\n")
    reader = ReadPages(path.parent / "inputs.txt", archive_kind(str(path)))
    found = [document.text for document in reader.run()]
    return found, int(reader.stats["dropped_rest_of_a_damaged_archive"].total)


def test_a_file_that_is_no_archive_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.wet").write_text("not an archive at all\n" * 50)
    (tmp_path / "b.wet.gz").write_bytes(b"nor this")
    assert pages_of(tmp_path / "a.wet") == pages_of(tmp_path / "b.wet.gz") == ([], 1)


@pytest.mark.parametrize("name", ["a.wet", "a.wet.gz", "a.warc", "a.warc.gz"])
def test_a_cut_archive_gives_what_lies_before_the_cut(name: str, tmp_path: Path) -> None:
    made = (
        write_wet(tmp_path / name, GOOD[:4])
        if "wet" in name
        else write_warc(tmp_path / name, [("text/html", html(t)) for t in GOOD[:4]])
    )
    whole, all_pages = made.read_bytes(), pages_of(made)[0]
    assert len(all_pages) == 4
    made.write_bytes(whole[:-100])
    assert pages_of(made) == (all_pages[:3], 1)
    for cut in range(1, len(whole), len(whole) // 40):
        made.write_bytes(whole[:cut])
        found, damaged = pages_of(made)
        assert found == all_pages[: len(found)]
        assert damaged <= 1


@given(data=st.data(), is_wet=st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_damaged_archive_is_never_an_error(data: st.DataObject, is_wet: bool) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        page_of_html = ("text/html; charset=utf-8", html(SHORT))
        made = write_wet(folder / "a.wet", [SHORT] * 2) if is_wet else write_warc(folder / "a.warc", [page_of_html] * 2)
        content = bytearray(made.read_bytes())
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=10))
        made.write_bytes(content)
        assert len(pages_of(made)[0]) <= 2


def test_an_unknown_kind_of_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"kind=wat is not known, did you mean wet\?"):
        ReadPages(tmp_path / "paths.txt", "wat")  # type: ignore[arg-type]
