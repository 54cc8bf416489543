"""Settings that a file has for single values of a key: they lie between files and overrides; bad ones are refused."""

from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from pretrain.config.read import read_config


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_settings_of_a_chosen_value_lie_between_files_and_overrides(tmp_path: Path) -> None:
    data = "data: {train: {path: a.json}, validation: {path: a.json}}\ncheckpoint: {init_from: x}\n"
    write(
        tmp_path,
        f"{data}variants:\n  cot: {{train: {{epochs: 2, micro_batch: 3}}}}\n  pause: {{train: {{epochs: 5}}}}",
        "base.yaml",
    )
    path = write(
        tmp_path, "base: base.yaml\ntrain: {epochs: 9}\nmethod: {name: cot}\nvariants: {cot: {train: {micro_batch: 4}}}"
    )

    def batch_and_epochs(*overrides: str) -> tuple[int, int]:
        train = read_config(path, FinetuneConfig, overrides).train
        return train.micro_batch, train.epochs

    assert batch_and_epochs() == (4, 2)
    assert batch_and_epochs("train.epochs=7") == (4, 7)
    assert batch_and_epochs("method.name=pause") == (32, 5)
    assert batch_and_epochs("method={name: coconut}") == (32, 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("variants: {iocot: {}}", "1: variants.iocot: unknown; method.name is one of coconut, cot, no_cot, icot"),
        ("variants: [icot]", "1: variants: needs values of method.name, got [icot]"),
        ("variants:\n  cot: {}\n  cot: {}", "2: variants.cot: given twice; keep one"),
        ("variants:\n  icot: {curriculum: {stages: 3}}", "2: curriculum.stages: unknown key"),
        ("variants:\n  icot: {variants: {}}", "2: variants: unknown key"),
    ],
)
def test_a_bad_variant_is_refused_whether_it_is_chosen_or_not(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    for overrides in ((), ("method.name=icot",)):
        with pytest.raises(ValueError) as caught:
            read_config(path, FinetuneConfig, overrides)
        assert f"run.yaml:{expected}" in str(caught.value)
