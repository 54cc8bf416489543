"""Small web archives for tests: pages of made-up English and German sentences, and a model of languages that knows the
two apart."""

import io
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

ENGLISH = {
    "small": "the of and to that with have a in is be for on as at by from",
    "large": "river mountain garden winter captain letter morning market village bridge forest window harbour winter "
    "candle journey stranger evening teacher library station kitchen mirror shadow silver wooden ancient quiet broken "
    "distant golden hidden narrow follows carries opens remembers crosses watches leaves gathers answers builds "
    "repairs paints borrows returns discovers",
}
GERMAN = {
    "small": "der die das und zu mit haben ein in ist sein auf als bei von nicht auch",
    "large": "Fluss Gebirge Garten Winter Hauptmann Brief Morgen Markt Dorf Bruecke Wald Fenster Hafen Kerze Reise "
    "Fremder Abend Lehrer Bahnhof Kueche Spiegel Schatten silbern hoelzern uralt ruhig zerbrochen entfernt golden "
    "verborgen schmal folgt traegt oeffnet erinnert kreuzt beobachtet verlaesst sammelt antwortet baut repariert malt "
    "borgt entdeckt",
}


def page(seed: int, words: dict[str, str] = ENGLISH, sentences: int = 14) -> str:
    """A page of sentences of 9 to 16 words in paragraphs of four; distinct seeds give distinct pages."""
    draw = random.Random(seed)
    small, large = words["small"].split(), words["large"].split()
    made = []
    for _ in range(sentences):
        chosen = [draw.choice(small if draw.random() < 0.45 else large) for _ in range(draw.randint(9, 16))]
        made.append(" ".join(chosen).capitalize() + ".")
    return "\n".join(" ".join(made[start : start + 4]) for start in range(0, len(made), 4))


def _write(path: Path, records: Iterable[tuple[str, dict[str, Any]]]) -> Path:
    stored = io.BytesIO()
    writer = WARCWriter(stored, gzip=path.suffix == ".gz")
    writer.write_record(writer.create_warcinfo_record(path.name, {"software": "tests"}))
    for number, (kind, fields) in enumerate(records):
        writer.write_record(writer.create_warc_record(f"http://example.org/{path.name}/{number}", kind, **fields))
    path.write_bytes(stored.getvalue())
    return path


def write_wet(path: Path, texts: Iterable[str]) -> Path:
    """A WET file: a record of plain text a page."""
    return _write(
        path,
        (("conversion", {"payload": io.BytesIO(text.encode()), "warc_content_type": "text/plain"}) for text in texts),
    )


def write_warc(path: Path, responses: Iterable[tuple[str, bytes]]) -> Path:
    """A WARC file: a request and a response a page, given as content type and body."""

    def records() -> Iterable[tuple[str, dict[str, Any]]]:
        for content_type, body in responses:
            request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "example.org")], is_http_request=True)
            yield "request", {"payload": io.BytesIO(b""), "http_headers": request}
            headers = StatusAndHeaders("200 OK", [("Content-Type", content_type)], protocol="HTTP/1.1")
            yield "response", {"payload": io.BytesIO(body), "http_headers": headers}

    return _write(path, records())


_TRAIN = """
import sys, fasttext
settings = dict(dim=16, epoch=20, minn=2, maxn=3, bucket=50_000, thread=1, verbose=0)
fasttext.train_supervised(sys.argv[1], **settings).save_model(sys.argv[2])
"""


def write_language_model(path: Path) -> Path:
    """A model of fastText's kind, labels as in its lid.176.bin."""
    lines = [
        f"__label__{code} {page(seed, words, 1)}"
        for seed in range(300)
        for code, words in (("en", ENGLISH), ("de", GERMAN))
    ]
    text = path.with_suffix(".txt")
    text.write_text("\n".join(lines))
    # fastText reads memory that it has not written: in a process that has used much of it, it meets a NaN now and then
    for _ in range(5):
        if subprocess.run([sys.executable, "-c", _TRAIN, text, path], check=False).returncode == 0:
            return path
    raise RuntimeError("fastText could not be trained in five tries")
