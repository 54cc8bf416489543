"""A run that reads data only, for tests that kill it: all ranks of a layout in one process, the state saved after every
step.

    python loader_child.py JOB.json NUM_RANKS NUM_STEPS STATE.npz

Goes on from STATE.npz if it is there, prints `step n` after each save, ends after NUM_STEPS steps in all.
"""

import hashlib
import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pretrain.config.data import DataSection
from pretrain.data.stream.loader import Loader


def join_ranks(parts: list[np.ndarray]) -> np.ndarray:
    """The global batch from the rows of each rank: row g belongs to rank g mod n."""
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def main(job_path: str, num_ranks: int, num_steps: int, state_path: Path) -> None:
    job = json.loads(Path(job_path).read_text())
    data = DataSection(**job.pop("data"))
    digests: list[str] = []
    with ExitStack() as stack:
        loaders = [
            stack.enter_context(Loader(data, rank=rank, num_ranks=num_ranks, **job)) for rank in range(num_ranks)
        ]
        if state_path.exists():
            with np.load(state_path, allow_pickle=False) as saved:
                digests = saved["digests"].tolist()
                for loader in loaders:
                    loader.load_state(saved["states"], int(saved["next_sample"]))
        while len(digests) < num_steps:
            batch = join_ranks([loader.next_batch() for loader in loaders])
            digests.append(hashlib.sha256(batch.tobytes()).hexdigest())
            temporary = state_path.with_suffix(".tmp.npz")
            states = np.sum([loader.state() for loader in loaders], axis=0)
            np.savez(temporary, states=states, next_sample=loaders[0].next_sample, digests=np.array(digests))
            temporary.replace(state_path)
            print(f"step {len(digests)}", flush=True)


if __name__ == "__main__":
    # whoever starts the tests in the background hands on that it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
