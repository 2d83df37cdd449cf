"""What every test may use: an own cache folder, no hub, the command line in this process, tiny real models."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models are slower on several threads, and tests run beside each other. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell has its background jobs ignore Ctrl-C, and their children too; what is tested here are those that heed it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated graphs, which take long to make and depend on a config alone: all tests of a run share them, in all
    processes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "graphs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> Iterator[None]:
    """For what fixtures make that tests share, before `own_cache` is there."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "graphs").symlink_to(graphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITFLEET_CACHE", str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def warm_builder() -> Iterator[None]:
    """Graphs are generated without importing the builder's libraries each time."""
    from tests.warm import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.runtimes.onnxruntime.template.run_child", run)
        yield


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are processes that work beside this one started anew; those of the example of a CI are."""
    from tests.warm import FORKS

    monkeypatch.setattr("multiprocessing.get_context", lambda method: FORKS)


@pytest.fixture(scope="session", autouse=True)
def little_time_to_settle() -> Iterator[None]:
    """What is timed are tiny models, whose times nobody is promised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.runtimes.asking.SETTLE_S", 0.1)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end one process would wait for them alone."""
    items.sort(key=lambda item: ("real_model" not in item.keywords, "long" not in item.keywords))


def pytest_collection_finish() -> None:
    """What is there now stays to the end. Collecting garbage, as every stage of making a supernet does, would look at
    all modules and tests again each time, which took longer than the tiny models do."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def what_was_imported_stays() -> None:
    """The same again, of what the tests before imported on their way."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, graphs: Path) -> Path:
    """No test reads or writes the cache of the person who runs the tests."""
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))  # `mktemp` reads the folder for a number
    folder.mkdir(parents=True)
    (folder / "graphs").symlink_to(graphs)
    monkeypatch.setenv("BITFLEET_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_gpu_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do plans of a test depend on whether tables of GPUs are installed."""
    from profiles.gpu_tables import package

    monkeypatch.setattr(package, "root", lambda: None)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error line without its mark; AssertionError where the error is not exactly one line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


Bitfleet = Callable[..., Outcome]


@pytest.fixture
def bitfleet(capsys: pytest.CaptureFixture[str]) -> Bitfleet:
    """Runs one command in this process."""
    import cli

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = left.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
