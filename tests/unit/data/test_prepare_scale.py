"""Preparation of many documents: memory that their number does not show in."""

import tracemalloc
from pathlib import Path

import pytest

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.prepare import PrepareSettings, prepare


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the index of a shard, which has so many rows at most and 29 bytes for each."""
    peaks = []
    for num_documents, most in ((500, 250), (3_000, 250), (3_000, 1 << 20)):
        monkeypatch.setattr("pretrain.data.prepare.units.SHARD_DOCUMENTS", most)
        path = tmp_path / f"{num_documents}.jsonl"
        path.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(num_documents)))
        output = tmp_path / f"{num_documents}-{most}"
        tracemalloc.start()
        prepare(PrepareSettings(inputs=(str(path),), output=output, tokenizer=None, num_workers=0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(Manifest.open(output)) == max(1, num_documents // most)
    assert abs(peaks[1] - peaks[0]) < 30_000
    assert peaks[2] - peaks[1] < 3_000 * 29 * 4
