"""Write the golden loss curve anew: `python -m tests.golden.keep`."""

import json
import tempfile
from pathlib import Path

import torch

from pretrain.parallel.groups import start_world
from tests.golden.curve import CURVE, losses

if __name__ == "__main__":
    torch.set_num_threads(1)
    start_world()
    with tempfile.TemporaryDirectory() as folder:
        CURVE.write_text(json.dumps(losses(Path(folder))) + "\n")
