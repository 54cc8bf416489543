"""Data behind a storage that fails: the error of the call, never damage."""

import errno
from pathlib import Path
from typing import Literal

import pytest

from pretrain.data.stream.loader import Loader
from tests.support.corpus import make_data, make_texts, make_tokenizer, write_source


@pytest.mark.parametrize("on_damage", ["stop", "skip"])
def test_a_storage_that_fails_is_no_damage(tmp_path: Path, on_damage: Literal["stop", "skip"]) -> None:
    """With workers and without, skipping or not: the call's own error, and nothing is skipped because of it."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer.model")
    folder = write_source(tmp_path / "away", make_texts(80), 4, tokenizer)
    for num_workers in (0, 2):
        section = make_data(tmp_path / "tokenizer.model", folder, num_workers=num_workers, on_damage=on_damage)
        with Loader(section, seed=1, seq_len=16, global_batch=4) as loader:
            for number in (1, 2, 3):
                path = folder / f"shard-{number:06d}.tar"
                path.rename(folder / f"kept-{number}")
                path.symlink_to(path)  # opening it is ELOOP, which is neither damage nor a missing file
            with pytest.raises(OSError, match=r"shard-00000\d\.tar") as caught:
                for _ in range(200):
                    loader.next_batch()
            assert caught.value.errno == errno.ELOOP and loader.damaged == 0
            for number in (1, 2, 3):
                (folder / f"kept-{number}").replace(folder / f"shard-{number:06d}.tar")
            loader.next_batch()
