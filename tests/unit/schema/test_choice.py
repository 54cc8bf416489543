"""Errors on unknown names."""

import pytest

from pretrain.schema.choice import MOST_LISTED, choose, did_you_mean


def test_the_nearest_name_is_suggested_else_all_names_are_listed_unless_they_are_many() -> None:
    assert choose({"adamw": 1}, "adamw", "optimizer.name") == 1
    with pytest.raises(ValueError, match=r"^optimizer\.name=adam is not known, did you mean adamw\?$"):
        choose({"adamw": 1, "muon": 2}, "adam", "optimizer.name")
    assert did_you_mean("zzz", ["b", "a"]) == "; there are a, b"
    assert did_you_mean("zzz", []) == "; there are none"
    many = [f"layer{number}" for number in range(MOST_LISTED + 1)]
    assert did_you_mean("zzz", many) == "" and did_you_mean("layr7", many) == ", did you mean layer7?"
