"""The first commands of a user with text of their own, as README.md prints them: tokenizer, shards, training."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain import launch
from tests.support.corpus import make_texts

ROOT = Path(__file__).parents[3]
PARAGRAPH = "**Pretrain on their own text.**"
VOCAB_SIZE = "400"
"""In the place of the one that is printed: there is little text here."""


def commands() -> list[list[str]]:
    """The words of each command of the paragraph that works on text/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(PARAGRAPH)[2].partition("\n**")[0]
    lines = [line for line in text.splitlines() if line.startswith("    python") and "12x2" not in line]
    return [shlex.split(line.replace("32000", VOCAB_SIZE)) for line in lines]


@pytest.mark.parametrize("as_one_file", [False, True])
def test_text_becomes_a_run_that_the_dry_run_accepts(tmp_path: Path, as_one_file: bool) -> None:
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "text").mkdir()
    texts = [text.replace("\n\n", "\n") for text in make_texts(3000)]
    tokenizer, shards, train = commands()
    if as_one_file:
        (tmp_path / "text" / "all.txt").write_text("\n\n".join(texts))
        tokenizer, shards = ([word.replace("*.jsonl", "*.txt") for word in each] for each in (tokenizer, shards))
        shards += ["--split-documents", "blank-lines"]
    else:
        (tmp_path / "text" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def run(words: list[str]) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"data/tokenizer.model: {VOCAB_SIZE} pieces" in run(tokenizer[1:])
    assert "data/shards: 3,000 documents" in run(shards[1:])
    launched = launch.parse(train[3:])
    assert launched.command[:2] == ["-m", "pretrain.train"]
    said = run([*launched.command, "--dry-run", "--world-size", str(launched.ranks)])
    assert "\ndata           data/shards: 3,000 documents, " in said
