"""The run behind the golden loss curve."""

import json
from pathlib import Path

from tests.distributed.training import train, training_config
from tests.support.corpus import make_texts, make_tokenizer, write_source

CURVE = Path(__file__).with_name("loss_curve.json")


def losses(root: Path) -> list[float]:
    """Train in `root`; the loss of every step."""
    write_source(root / "shards", make_texts(120), 3, make_tokenizer(root / "tokenizer.model"))
    config = training_config(root, "golden", train={"steps": 30}, checkpoint={"every": 0}, validation={"every": 0})
    assert train(config) == 0
    return [json.loads(line)["loss"] for line in (root / "runs" / "golden" / "metrics.jsonl").read_text().splitlines()]
