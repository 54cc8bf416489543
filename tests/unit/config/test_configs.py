"""Every shipped configuration loads, plans and round-trips, and is the model that its name says."""

from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from pretrain import train
from pretrain.config.read import read_config, resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.task_source import TaskSource
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.count import count_parameters
from pretrain.model.loop.config import LoopSection
from pretrain.model.loop.tables import TABLES
from pretrain.plan.plan import make_plan
from pretrain.plan.text import plan_rows
from pretrain.rows.identity import loops_of

FOLDER = Path(__file__).parents[3] / "configs" / "pretrain"
TASK_FILES = sorted((FOLDER.parent / "tasks").glob("*.yaml"))
FILES = [*sorted(FOLDER.glob("*.yaml")), *TASK_FILES]
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

FAMILY = {  # name: (k, L, effective depth, distinct layers)
    "24x1": (24, 1, 24, 24),
    "12x2": (12, 2, 24, 12),
    "8x3": (8, 3, 24, 8),
    "6x4": (6, 4, 24, 6),
    "4x6": (4, 6, 24, 4),
    "4-4x4-4": (4, 4, 24, 12),
    "24x1_regularised_k4": (24, 1, 24, 24),
}


@every_file
def test_configuration_plans_and_round_trips(path: Path, tmp_path: Path) -> None:
    config = read_config(path, RunConfig)
    plan = make_plan(config, config.ranks_per_replica)
    assert dict(plan_rows(plan))["depth"].startswith(f"{config.model.effective_depth()} = ")
    resolved = tmp_path / "config.yaml"
    resolved.write_text(resolved_yaml(config))
    assert read_config(resolved, RunConfig) == config


@pytest.mark.parametrize("kind", [*TABLES, "residual_scale", "keys", "injection_at"])
def test_each_choice_of_the_loop_has_a_small_configuration(kind: str) -> None:
    """Those of `configs/loops`; an injection acts from the second loop on by default, and once for want of another."""
    found = [read_config(path, RunConfig).model.loop for path in sorted((FOLDER.parent / "loops").glob("*.yaml"))]
    hint = get_type_hints(LoopSection)[kind]
    ours = hint if get_origin(hint) is Literal else next(part for part in get_args(hint) if get_origin(part) is Literal)
    assert set(get_args(ours)) == {getattr(loop, kind) for loop in found}


@every_file
def test_run_is_named_after_its_file(path: Path) -> None:
    assert read_config(path, RunConfig).run.name == path.stem


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: path.stem)
def test_examples_of_a_task_fit_tokenizer_vocabulary_and_length(path: Path) -> None:
    config = read_config(path, RunConfig)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    assert tokenizer.vocab_size <= config.model.vocab_size
    sources = [TaskSource(each, "train", 0, config.train.seq_len, tokenizer) for each in config.data.sources]
    assert config.train.seq_len <= max(made.most_positions() for made in sources) + 1  # not padding for nothing
    for made in sources:
        made.require_document()
        longest = max(int((made.sample(number)[0] != tokenizer.pad_id).sum()) for number in range(300))
        assert made.most_positions() <= 1.25 * longest


@pytest.mark.parametrize(("name", "seq_len"), [("addition_small", 14), ("addition_8_small", 27), ("i_gsm", 381)])
def test_a_sequence_too_short_for_the_longest_example_is_refused_at_the_start(name: str, seq_len: int) -> None:
    path = FOLDER.parent / "tasks" / f"{name}.yaml"
    config = read_config(path, RunConfig, [f"train.seq_len={seq_len}"])
    with pytest.raises(
        ValueError, match=rf"an example can take \d+ positions, more than train.seq_len={seq_len}: raise"
    ):
        train.plan(config, 1)
    with pytest.raises(
        ValueError, match=rf"an example can take \d+ positions, more than train.seq_len={seq_len}: raise"
    ):
        Loader(config.data, seed=0, seq_len=seq_len, global_batch=8)


@pytest.mark.parametrize("name", FAMILY)
def test_family_has_the_depths_of_the_paper(name: str) -> None:
    model = read_config(FOLDER / f"{name}.yaml", RunConfig).model
    num_layers = model.num_prelude_layers + model.num_loop_layers + model.num_coda_layers
    assert (model.num_loop_layers, model.num_loops, model.effective_depth(), num_layers) == FAMILY[name]


@pytest.mark.parametrize("name", FAMILY)
def test_family_differs_from_its_base_in_depth_alone(name: str) -> None:
    base, config = (read_config(FOLDER / f"{stem}.yaml", RunConfig).model_dump() for stem in ("looped_1.5b", name))
    for key in ("num_prelude_layers", "num_loop_layers", "num_loops", "num_coda_layers", "loop_regulariser"):
        config["model"][key] = base["model"][key]
    config["run"]["name"] = base["run"]["name"]
    assert config == base


def test_the_regularised_model_is_the_best_of_the_papers_table() -> None:
    regulariser = read_config(FOLDER / "24x1_regularised_k4.yaml", RunConfig).model.loop_regulariser
    assert (regulariser.block_size, regulariser.weight) == (4, 10)


def test_sizes_are_as_advertised() -> None:
    def total(name: str) -> int:
        config = read_config(FOLDER / f"{name}.yaml", RunConfig)
        return sum(count_parameters(config.model, config.train.seq_len).values())

    assert total("24x1") == 1_426_163_712
    assert total("gpt2_small") == 124_475_904
    assert total("12x2") < 0.6 * total("24x1")


@pytest.mark.parametrize("world_size", [1, 8, 64])
def test_family_fits_on_an_80_gb_gpu(world_size: int) -> None:
    for name in FAMILY:
        plan = make_plan(read_config(FOLDER / f"{name}.yaml", RunConfig), world_size)
        assert plan.worst_stage.total < 70e9, name


def test_quickstart_is_a_ring_of_two_ranks_that_trains_the_depths_it_scores() -> None:
    config = read_config(FOLDER / "quickstart.yaml", RunConfig)
    assert config.ranks_per_replica == config.parallel.pipeline == 2
    sampling = config.train.loop_sampling
    assert sampling.minimum <= min(config.validation_loops) and max(config.validation_loops) <= sampling.maximum


def test_the_layer_that_the_quick_start_repeats_is_trained_at_every_depth_it_scores() -> None:
    config = read_config(FOLDER.parent / "tasks" / "p_hop_quickstart.yaml", RunConfig)
    assert config.model.num_loop_layers == 1 and config.train.global_batch == 2 * config.train.micro_batch
    least, most = loops_of(config)
    assert least <= min(config.validation_loops) and max(config.validation_loops) <= most
