"""The loader: one order on any layout, through kills and resumptions, at a cost that does not grow; its workers live
and die with it."""

import gc
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.config.data import DataSection
from pretrain.data import shards
from pretrain.data.manifest import Manifest, write_manifest
from pretrain.data.stream import stream
from pretrain.data.stream.cursor import FIELDS
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.order import owned_items, owned_samples
from pretrain.data.tokenizers.tokenizer import Tokenizer
from tests.support.corpus import make_data, make_texts, make_tokenizer, write_source
from tests.support.killing import wait_for_end, workers_of
from tests.support.loader_child import join_ranks

CHILD = Path(__file__).parents[2] / "support/loader_child.py"
REPOSITORY = Path(__file__).parents[3]
SIZES: dict[str, Any] = {"seed": 3, "seq_len": 32, "global_batch": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loader")


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Tokenizer:
    return make_tokenizer(root / "tokenizer.model")


@pytest.fixture(scope="module")
def folders(root: Path, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """A source of token shards and one of raw text."""
    tokens = write_source(root / "tokens", make_texts(300, tag="left"), 6, tokenizer)
    return tokens, write_source(root / "text", make_texts(100, tag="right", seed=1), 2, tokenizer, as_text=True)


@pytest.fixture(scope="module")
def data(root: Path, folders: tuple[Path, Path]) -> DataSection:
    return make_data(root / "tokenizer.model", *folders, weights=(2.0, 1.0), validation_fraction=0.1)


@pytest.fixture(scope="module")
def reference(data: DataSection) -> list[str]:
    """Digests of 200 global batches of one rank without workers."""
    return [digest(batch) for batch in global_batches(data, 200)]


def digest(batch: np.ndarray) -> str:
    return hashlib.sha256(batch.tobytes()).hexdigest()


def global_batches(data: DataSection, count: int, num_ranks: int = 1) -> Iterator[np.ndarray]:
    with ExitStack() as stack:
        ranks = [Loader(data, rank=rank, num_ranks=num_ranks, **SIZES) for rank in range(num_ranks)]
        loaders = [stack.enter_context(loader) for loader in ranks]
        for first in range(0, count * SIZES["global_batch"], SIZES["global_batch"]):
            samples = range(first, first + SIZES["global_batch"])
            owned = [list(owned_samples(first, samples.stop, rank, num_ranks)) for rank in range(num_ranks)]
            assert [list(owned_items(samples, first, rank, num_ranks)) for rank in range(num_ranks)] == owned
            yield join_ranks([loader.next_batch() for loader in loaders])


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(1, 2), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_no_layout_changes_the_batches(
    data: DataSection, reference: list[str], num_ranks: int, num_workers: int
) -> None:
    layout = data.model_copy(update={"num_workers": num_workers, "prefetch_batches": 1 + num_ranks})
    assert [digest(batch) for batch in global_batches(layout, len(reference), num_ranks)] == reference


@pytest.mark.parametrize("num_workers", [0, 1])
def test_killed_runs_resume_exactly_on_another_number_of_ranks(
    data: DataSection, reference: list[str], tmp_path: Path, num_workers: int
) -> None:
    job, state = tmp_path / "job.json", tmp_path / "state.npz"
    section = data.model_copy(update={"num_workers": num_workers})
    job.write_text(json.dumps({"data": section.model_dump(), **SIZES}))
    steps = random.Random(num_workers)
    ends = (steps.randint(1, 60), steps.randint(70, 130), steps.randint(140, 190), None)
    for num_ranks, kill_at in zip((1, 2, 1, 4), ends, strict=True):
        command = [sys.executable, str(CHILD), str(job), str(num_ranks), str(len(reference)), str(state)]
        with start(command) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if kill_at is not None and int(line.split()[1]) >= kill_at:
                    child.kill()
                    break
        assert child.returncode == (0 if kill_at is None else -signal.SIGKILL)
    with np.load(state, allow_pickle=False) as saved:
        assert saved["digests"].tolist() == reference


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY, **options)


def test_the_state_is_that_of_the_batches_handed_out_and_of_the_own_streams(data: DataSection) -> None:
    states = []
    for num_workers in (0, 2):
        with Loader(data.model_copy(update={"num_workers": num_workers}), rank=1, num_ranks=2, **SIZES) as loader:
            for _ in range(5):
                loader.next_batch()
            states.append(loader.state())
            assert loader.next_sample == 5 * SIZES["global_batch"]
    assert np.array_equal(states[0], states[1])
    assert not states[0][0::2].any() and states[0][1::2].any(axis=(1, 2)).all()


def test_sources_come_by_weight_and_epochs_are_counted(root: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    names = ("left", "right")
    folders = [write_source(tmp_path / name, make_texts(64, tag=name, max_words=0), 4, tokenizer) for name in names]
    data = make_data(root / "tokenizer.model", *folders, weights=(2.0, 1.0), num_workers=1)
    counts: dict[str, int] = dict.fromkeys(names, 0)
    with Loader(data, **SIZES) as loader:
        for _ in range(200):
            for text in map(tokenizer.decode, loader.next_batch()[:, 0]):
                (found,) = (name for name in names if name in text)
                counts[found] += 1
        epochs = loader.state()[:, :, FIELDS.index("epoch")]
    assert counts["left"] / sum(counts.values()) == pytest.approx(2 / 3, abs=0.03)
    assert loader.epochs == epochs.min() > 10
    assert (epochs.max(axis=0) < 1.4 * epochs.min(axis=0)).all()


def test_validation_repeats_itself_and_shares_nothing_with_training(data: DataSection, tokenizer: Tokenizer) -> None:
    held_out = []
    for _ in range(2):
        with Loader(data, split="validation", **SIZES) as loader:
            held_out.append(np.concatenate([loader.next_batch() for _ in range(10)]))
    assert np.array_equal(*held_out)
    trained = np.concatenate(list(global_batches(data, 60)))
    assert not names_in(held_out[0], tokenizer) & names_in(trained, tokenizer)


def names_in(rows: np.ndarray, tokenizer: Tokenizer) -> set[str]:
    """First words of the documents that begin in rows and do not end in mid-word."""
    starts = [row[place + 1 :].tolist() for row in rows[:, 0] for place in np.flatnonzero(row == tokenizer.bos_id)]
    return {text.split(" ")[0] for text in map(tokenizer.decode, starts) if " " in text}


class TestCost:
    """What a resumed run reads, and what it holds, is the same after ten million samples, with thousands of shards."""

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        """Counts of documents, indexes and manifest rows read in this process."""
        counts = {"read_document": 0, "open_index": 0, "__getitem__": 0}

        def count(owner: object, name: str) -> None:
            original: Callable[..., object] = getattr(owner, name)

            def counted(*arguments: object) -> object:
                counts[name] += 1
                return original(*arguments)

            monkeypatch.setattr(owner, name, counted)

        count(stream, "read_document")
        count(stream, "open_index")
        count(Manifest, "__getitem__")
        return counts

    def test_resuming_at_ten_million_samples_reads_what_resuming_at_ten_reads(
        self, data: DataSection, reads: dict[str, int]
    ) -> None:
        spent = []
        for samples in (12, 10**7):
            with Loader(data, **SIZES) as loader:
                loader.next_batch()
                states = loader.state()
                states[:, :, FIELDS.index("epoch")] += samples // 12 - 1
                states[:, :, FIELDS.index("document") :] = 0  # at the start of the unit: another epoch, another order
                loader.load_state(states, samples)
                reads.update(dict.fromkeys(reads, 0))
                batch = loader.next_batch()
                assert batch.shape == (12, 2, 32) and loader.next_sample == samples + 12
                spent.append(dict(reads))
        units_touched = 2 * SIZES["global_batch"]
        for counts in spent:
            assert 0 < counts["open_index"] <= units_touched
            assert 0 < counts["__getitem__"] <= units_touched
            assert 0 < counts["read_document"] <= 10 * SIZES["global_batch"]

    def test_resuming_inside_documents_reads_those_again_and_nothing_else(
        self, data: DataSection, reads: dict[str, int]
    ) -> None:
        with Loader(data, **SIZES) as loader:
            for _ in range(40):
                loader.next_batch()
            states, next_sample = loader.state(), loader.next_sample
            reads.update(dict.fromkeys(reads, 0))
            going_on = loader.next_batch()
            without_break = reads["read_document"]
            loader.load_state(states, next_sample)
            reads.update(dict.fromkeys(reads, 0))
            assert np.array_equal(loader.next_batch(), going_on)
        assert reads["read_document"] <= without_break + SIZES["global_batch"]

    def test_memory_does_not_grow_with_the_number_of_shards(
        self, root: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        one = write_source(tmp_path / "one", make_texts(10, max_words=5), 1, tokenizer)
        held = []
        for num_shards in (50, 50, 2000):  # the first one fills the caches of the libraries
            section = make_data(root / "tokenizer.model", link_shard(one, tmp_path / str(len(held)), num_shards))
            gc.collect()
            tracemalloc.start()
            with Loader(section, **SIZES) as loader:
                for _ in range(40):
                    loader.next_batch()
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
                assert not any("index.npy" in line for line in Path("/proc/self/maps").read_text().splitlines())
            tracemalloc.stop()
        assert held[2] < held[1] + 16 * 1024


def link_shard(source: Path, folder: Path, count: int) -> Path:
    """A source of `count` shards that are all the one of `source` under other names."""
    folder.mkdir()
    manifest = Manifest.open(source)
    rows = [replace(manifest[0], shard=f"shard-{number:06d}.tar") for number in range(count)]
    for row in rows:
        for name in (str, shards.index_name):
            os.link(source / name(manifest[0].shard), folder / name(row.shard))
    write_manifest(folder, manifest.header, rows)
    return folder


class TestErrors:
    def test_no_sources(self, data: DataSection) -> None:
        with pytest.raises(ValueError, match=r"data\.sources is empty"):
            Loader(data.model_copy(update={"sources": ()}), **SIZES)

    def test_layouts_that_do_not_divide(self, data: DataSection) -> None:
        with pytest.raises(ValueError, match=r"data\.num_streams=8 is not divisible by data-parallel size=3"):
            Loader(data, rank=0, num_ranks=3, **SIZES)
        with pytest.raises(ValueError, match=r"global batch=12 is not divisible by data-parallel size=8"):
            Loader(data, rank=0, num_ranks=8, **SIZES)

    def test_a_folder_that_is_no_source(self, data: DataSection, tmp_path: Path) -> None:
        section = make_data(Path(data.tokenizer), tmp_path)
        with pytest.raises(ValueError, match=str(tmp_path)):
            Loader(section, **SIZES)

    def test_a_state_of_other_streams(self, data: DataSection) -> None:
        message = r"data\.num_streams=4 and 1 sources.*=8 and 2 sources"
        with Loader(data, **SIZES) as loader, pytest.raises(ValueError, match=message):
            loader.load_state(np.zeros((4, 1, len(FIELDS)), dtype=np.int64), 0)

    def test_a_saved_run_of_other_documents(
        self, data: DataSection, root: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        other = write_source(tmp_path / "other", make_texts(50), 2, tokenizer)
        with Loader(data, **SIZES) as saved, Loader(make_data(root / "tokenizer.model", other), **SIZES) as loader:
            saved.require_sources(saved.fingerprints)
            with pytest.raises(ValueError, match=rf"{other}: its documents are not those that the run was trained on"):
                loader.require_sources(saved.fingerprints)


class TestWorkers:
    def test_damage_found_by_a_worker_is_one_error_at_its_batch(
        self, root: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        folder = write_source(tmp_path / "damaged", make_texts(80), 4, tokenizer)
        path = folder / "shard-000002.tar"
        path.write_bytes(path.read_bytes()[:3000])
        failed_at = []
        for num_workers in (0, 2):
            with Loader(make_data(root / "tokenizer.model", folder, num_workers=num_workers), **SIZES) as loader:
                with pytest.raises(ValueError, match=r"shard-000002\.tar: document \d+ at byte \d+") as caught:
                    for _ in range(200):
                        loader.next_batch()
                assert "\n" not in str(caught.value)
                failed_at.append(loader.next_sample)
        assert failed_at[0] == failed_at[1]

    def test_skipped_documents_are_counted_through_workers(
        self, root: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        folder = write_source(tmp_path / "damaged", make_texts(80), 4, tokenizer)
        (folder / "shard-000002.tar").unlink()
        counts = []
        for num_workers in (0, 2):
            skipping = make_data(root / "tokenizer.model", folder, num_workers=num_workers, on_damage="skip")
            with Loader(skipping, **SIZES) as loader:
                while loader.epochs < 1:
                    loader.next_batch()
                counts.append(loader.damaged)
        assert counts[0] == counts[1] >= 20

    def test_a_killed_worker_is_one_error_and_close_ends_the_others(self, data: DataSection) -> None:
        with Loader(data.model_copy(update={"num_workers": 2}), **SIZES) as loader:
            loader.next_batch()
            workers = workers_of(os.getpid())
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            with pytest.raises(ChildProcessError, match=r"a data worker ended by signal SIGKILL.*data\.num_workers=0"):
                for _ in range(200):
                    loader.next_batch()
            assert not workers_of(os.getpid())

    def test_after_an_error_the_loader_can_go_on_from_the_last_whole_batch(
        self, data: DataSection, reference: list[str]
    ) -> None:
        made = []
        with Loader(data.model_copy(update={"num_workers": 2}), **SIZES) as loader:
            made += [digest(loader.next_batch()) for _ in range(3)]
            os.kill(workers_of(os.getpid())[1], signal.SIGKILL)
            while True:
                try:
                    made.append(digest(loader.next_batch()))
                except ChildProcessError:
                    break
            made.append(digest(loader.next_batch()))
        assert made == reference[: len(made)]

    def test_signals_for_the_trainer_do_not_end_workers(self, data: DataSection, reference: list[str]) -> None:
        with Loader(data.model_copy(update={"num_workers": 1, "prefetch_batches": 1}), **SIZES) as loader:
            made = [digest(loader.next_batch())]
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(workers_of(os.getpid())[0], number)
            made += [digest(loader.next_batch()) for _ in range(40)]
        assert made == reference[:41]

    def test_workers_die_with_a_killed_parent(self, data: DataSection, tmp_path: Path) -> None:
        job = tmp_path / "job.json"
        job.write_text(json.dumps({"data": data.model_copy(update={"num_workers": 2}).model_dump(), **SIZES}))
        with start([sys.executable, str(CHILD), str(job), "1", "1000000", str(tmp_path / "state.npz")]) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "step 1\n"
            workers = [os.pidfd_open(process) for process in workers_of(parent.pid)]
            parent.kill()
        assert len(workers) == 2
        for worker in workers:
            wait_for_end(worker)

    def test_a_worker_ends_though_somebody_else_holds_its_pipe(self, data: DataSection, tmp_path: Path) -> None:
        """A process that the trainer forked keeps the read end open, so the pipe does not break when that dies."""
        script = (
            "import json, os, sys, time; from pretrain.config.data import DataSection; "
            "from pretrain.data.stream.loader import Loader\n"
            "job = json.load(open(sys.argv[1])); loader = Loader(DataSection(**job.pop('data')), **job); "
            "loader.next_batch()\n"
            "holder = os.fork()\n"
            "if not holder: time.sleep(60); os._exit(0)\n"
            "print(holder, flush=True); time.sleep(60)\n"
        )
        job = tmp_path / "job.json"
        job.write_text(json.dumps({"data": data.model_copy(update={"num_workers": 1}).model_dump(), **SIZES}))
        with start([sys.executable, "-c", script, str(job)]) as parent:
            assert parent.stdout is not None
            holder = int(parent.stdout.readline())
            try:
                (worker,) = (os.pidfd_open(process) for process in workers_of(parent.pid) if process != holder)
                parent.kill()
                wait_for_end(worker)
            finally:
                os.kill(holder, signal.SIGKILL)

    def test_ctrl_c_is_quiet(self, data: DataSection, tmp_path: Path) -> None:
        job = tmp_path / "job.json"
        job.write_text(json.dumps({"data": data.model_copy(update={"num_workers": 2}).model_dump(), **SIZES}))
        command = [sys.executable, str(CHILD), str(job), "1", "1000000", str(tmp_path / "state.npz")]
        with start(command, stderr=subprocess.PIPE, start_new_session=True) as parent:
            assert parent.stdout is not None and parent.stderr is not None
            assert parent.stdout.readline() == "step 1\n"
            workers = [os.pidfd_open(process) for process in workers_of(parent.pid)]
            os.killpg(parent.pid, signal.SIGINT)
            parent.stdout.read()
            # the parent's own; an entry script turns it into a line
            assert parent.stderr.read().count("Traceback") == 1
        for worker in workers:
            wait_for_end(worker)

    def test_the_worker_does_not_import_torch(self) -> None:
        script = "import pretrain.data.stream.worker, pretrain.data.stream.loader, sys; print('torch' in sys.modules)"
        with start([sys.executable, "-c", script]) as child:
            assert child.stdout is not None and child.stdout.read() == "False\n"
