"""A loop that is captured once and replayed has the gradients of the loops as they are, at other loop counts too.
Without a GPU what would be captured is run."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu
TOOLS = Path(__file__).parents[2] / "tools"


def test_a_replayed_loop_has_the_gradients_of_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.graph import LOOPS, ReplayedLoop, loops_of, make_block, require_equal
    from benchmarks.train import SMALL

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SMALL.model_copy(
        update={"vocab_size": 16, "hidden_size": 64, "num_attention_heads": 4, "ffn_size": 96, "num_loop_layers": 2}
    )
    model = make_block(shape, 32, torch.float32, device, "none")
    states, gradient = (torch.randn(64, 64, device=device) for _ in range(2))
    context = model.context(torch.zeros(2, 32, dtype=torch.long, device=device))
    found, replayed = loops_of(model, context, states, gradient), ReplayedLoop(model, context, states)
    shorter = replayed.run(LOOPS - 1, states, gradient)
    require_equal({"as it is": found, "replayed": replayed.run(LOOPS, states, gradient)}, torch.float32)
    with pytest.raises(ValueError, match="the loop shorter has other gradients"):
        require_equal({"as it is": found, "shorter": shorter}, torch.float32)
