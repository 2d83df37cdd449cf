"""Kills train, plan and export at random moments, lets the next run go on, and looks for what is lost or left.

    python benchmarks/kills.py [--kills 200] [--seed 0]

Each command runs in a process of its own, forked from one that has imported everything, so that a run takes seconds.
A training is killed up to three times in a row before it may finish; then its losses and weights must be those of one
that went through, to the last bit. So must those of a model that stays in its files (`supernet.streaming`) be those of
one made in memory. A plan must be the same plan, an export the same package; while it is killed, an older package stays
whole. SIGINT and SIGTERM must end with their exit codes and leave no process behind; what SIGKILL
leaves must be gone after the next run.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import argparse
import importlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claims import Claim, finish, table

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
BEGUN_S = 0.1  # after the fork; before, it may not be our code yet that a signal meets
ENDS = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (143,), signal.SIGINT: (130,)}
IN_A_ROW = 3  # kills of one training at most
SHARES = {"train": 0.3, "stream": 0.3, "plan": 0.2, "export": 0.2}
HEAVY = (
    "torch", "transformers", "transformers.models.llama.modeling_llama", "accelerate", "scipy.optimize", "optuna",
    "onnx", "onnxruntime", "onnxruntime_genai", "supernet.create", "supernet.evaluate", "planner.pipeline",
    "planner.package", "planner.runtimes.onnxruntime.export", "planner.runtimes.onnxruntime.template",
)  # fmt: skip
TRAIN = ("--bits", "2,3,8", "--group-size", "32", "--quantizer", "gptq", "--awq", "0.5", "--steps", "24")
PLAN = ("--mem", "200MB", "--context", "128", "--prompt-tokens", "64", "--device", "laptop-i5-1240p-8gb")


@dataclass
class Tally:
    """What went wrong after the kills of one command by one signal, and how often it was killed."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def fail(self, what: str, detail: str) -> None:
        self.wrong.setdefault(what, []).append(detail)


@dataclass(frozen=True)
class End:
    code: int  # negative: the signal
    killed: bool  # whether it was still running when the signal came
    orphans: int
    said: str


class Runs:
    """Runs commands in the folder `work`, with the caches and temporary files of that folder alone."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.random, self.tally = work, random.Random(seed), Tally()
        self.seconds: dict[str, float] = {}
        self.temporary = work / "tmp"
        self.temporary.mkdir()
        os.environ |= {"BITFLEET_CACHE": str(work / "cache"), "TMPDIR": str(self.temporary)}
        tempfile.tempdir = None
        os.chdir(work)

    def whole(self, *arguments: str) -> End:
        """A run that nobody disturbs; its time is where the kills of its command fall."""
        started = time.monotonic()
        end = self._run(arguments, None, float("inf"))
        self.seconds[arguments[0]] = time.monotonic() - started
        if end.code != 0:
            self.tally.fail("did not go on", f"{arguments[0]}: exit {end.code}, {end.said[-300:]}")
        return end

    def again(self, *arguments: str) -> End:
        """A run that may refuse, as a finished training does."""
        return self._run(arguments, None, float("inf"))

    def kill(self, *arguments: str) -> End:
        """A run that gets a signal somewhere in it."""
        number = self.random.choice(SIGNALS)
        end = self._run(arguments, number, self.random.uniform(BEGUN_S, 1.05 * self.seconds[arguments[0]]))
        if end.killed:
            name = f"{arguments[0]} {number.name}"
            self.tally.kills[name] += 1
            if end.code not in (*ENDS[number], 0):
                self.tally.fail("wrong exit", f"{name}: exit {end.code}, {end.said[-300:]}")
            if number != signal.SIGKILL and end.orphans:
                self.tally.fail("orphans", f"{name}: {end.orphans} processes go on")
            if number != signal.SIGKILL and any(self.temporary.iterdir()):
                self.tally.fail("left in the temporary folder", f"{name}: {names(self.temporary)}")
        for path in self.temporary.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        return end

    def _run(self, arguments: tuple[str, ...], number: signal.Signals | None, after_s: float) -> End:
        log = self.work / "log"
        process = forked(arguments, log)
        status, killed, deadline = None, False, time.monotonic() + after_s
        while status is None:
            ended, found = os.waitpid(process, os.WNOHANG)
            if ended:
                status = found
            elif number is not None and not killed and time.monotonic() >= deadline:
                os.kill(process, number)
                killed = True
            else:
                time.sleep(0.002)
        left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if session(pid) == process]
        if left:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        return End(os.waitstatus_to_exitcode(status), killed, len(left), log.read_text(errors="replace"))


def forked(arguments: tuple[str, ...], log: Path) -> int:
    """A process in a session of its own that runs one command."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for descriptor, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
            os.dup2(source, descriptor)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # before the command sets its own
        import cli

        cli.main(as_command(arguments))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except KeyboardInterrupt:  # before or after the command itself
        code = 0
    finally:
        os._exit(code)


def as_command(arguments: tuple[str, ...]) -> list[str]:
    """What is run; to `stream` is to train and leave the model in its files, however small it is."""
    if arguments[0] != "stream":
        return list(arguments)
    import commands.needs

    commands.needs._streams = lambda *about, **more: True
    return ["train", *arguments[1:]]


def session(pid: int) -> int | None:
    """The session of a process that runs; None for one that has ended, also where nobody has waited for it."""
    try:
        state, _, _, found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(found)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def index(net: Path) -> Any:
    path = net / "supernet.json"
    return json.loads(path.read_text()) if path.exists() else None


def kept(net: Path) -> tuple[bool, int]:
    """Whether a start is whole; then the steps that were kept, before it the blocks whose codes are there."""
    from supernet.files import read_tensors
    from supernet.folder import PREPARING

    if index(net) is None:
        return False, len(list((net / PREPARING).glob("codes-*.safetensors")))
    path = net / "training.safetensors"
    return True, len(read_tensors(path)[1]["history"]) if path.exists() else 0


def trainings(runs: Runs, kills: int) -> None:
    makings(runs, kills, "train", "model", *TRAIN, "--data", "text.txt")


def streamings(runs: Runs, kills: int) -> None:
    makings(runs, kills, "stream", "model", *TRAIN, "--train-bits", "none", "--data", "text.txt")


def makings(runs: Runs, kills: int, command: str, *options: str) -> None:
    """Supernets whose making is killed and gone on with, beside one that went through, in memory."""
    whole = Path(f"whole-{command}")
    runs.whole("train", *options, "--out", str(whole))
    expected, left = index(whole), names(whole)
    if command != "train":
        runs.whole(command, *options, "--out", "once")
        shutil.rmtree("once")
    for number in kills_in_rows(runs, command, kills):
        net = Path(f"net{number}")
        for _ in range(runs.random.randint(1, IN_A_ROW)):
            before = kept(net)
            runs.kill(command, *options, "--out", str(net), "--resume")
            found = index(net)
            if found and found["info"]["finished"]:
                break
            if kept(net) < before:
                runs.tally.fail("lost", f"{net}: {kept(net)} after {before}")
        else:
            runs.whole(command, *options, "--out", str(net), "--resume")
        found = index(net)
        if found is None or not found["info"]["finished"]:
            continue  # told already
        same = found["info"]["losses"] == expected["info"]["losses"] and found["hashes"] == expected["hashes"]
        if not same:
            runs.tally.fail("unequal", f"{net}: {found['info']['losses']}")
        if names(net) != left:  # a run that was killed when it was done is tidied by the next one
            runs.again(command, *options, "--out", str(net), "--resume")
        check_left(runs, net, left)
        shutil.rmtree(net)


def kills_in_rows(runs: Runs, command: str, kills: int) -> Iterator[int]:
    """Numbers until the command was killed so often."""
    number = 0
    while sum(count for name, count in runs.tally.kills.items() if name.startswith(command)) < kills:
        yield number
        number += 1


def check_left(runs: Runs, folder: Path, expected: list[str]) -> None:
    extra = sorted({*names(folder)} - {*expected})
    if extra:
        runs.tally.fail("left over", f"{folder}: {extra}")
    beside = [name for name in names(runs.work) if name.startswith(".")]
    if beside:
        runs.tally.fail("left over", f"beside {folder}: {beside}")


def plans(runs: Runs, kills: int) -> None:
    """Plans whose finalists have to be measured; the measurements of others stay."""
    options = ("whole-train", *PLAN, "--trials", "20")
    runs.whole("plan", *options, "--out", "whole.json")
    plan, measured = json.loads(Path("whole.json").read_text()), Path("whole-train", "evaluations.json")
    left = names(Path("whole-train"))
    for _ in kills_in_rows(runs, "plan", kills):
        others = {"another/held-out": {"subnet": {"kl": 1.0, "perplexity": 1.0, "top1": 1.0, "tokens": 1}}}
        measured.write_text(json.dumps(others))
        Path("plan.json").unlink(missing_ok=True)
        runs.kill("plan", *options, "--out", "plan.json")
        runs.whole("plan", *options, "--out", "plan.json")
        found = json.loads(Path("plan.json").read_text())
        if found["compared"] != plan["compared"]:
            runs.tally.fail("unequal", "plan: other subnets or measurements")
        if json.loads(measured.read_text()).get("another/held-out") != others["another/held-out"]:
            runs.tally.fail("lost", "plan: an evaluation of another plan")
        check_left(runs, Path("whole-train"), left)


def exports(runs: Runs, kills: int) -> None:
    """Exports over an older package, with and without the graph in the cache."""
    runs.whole("plan", "whole-train", *PLAN, "--trials", "20", "--out", "whole.json")
    runs.whole("export", "whole.json", "--out", "package")
    manifest = json.loads(Path("package", "manifest.json").read_text())["files"]
    left, cold = names(Path("package")), runs.seconds["export"]
    runs.whole("export", "whole.json", "--out", "package")
    warm = runs.seconds["export"]
    for number in kills_in_rows(runs, "export", kills):
        runs.seconds["export"] = cold if number % 4 == 3 else warm
        if number % 4 == 3:
            shutil.rmtree("cache", ignore_errors=True)
            shutil.rmtree(Path("whole-train", "cache"), ignore_errors=True)
        runs.kill("export", "whole.json", "--out", "package")
        check_package(runs, manifest, "after the kill")
        runs.whole("export", "whole.json", "--out", "package")
        check_package(runs, manifest, "after the next run")
        check_left(runs, Path("package"), left)


def check_package(runs: Runs, manifest: dict[str, Any], when: str) -> None:
    from planner.package import open_package
    from planner.runtimes import RUNTIMES

    try:
        package = open_package(Path("package"))
        package.check(RUNTIMES["onnxruntime"]())
    except (ValueError, OSError) as error:
        runs.tally.fail("lost", f"package {when}: {error}")
        return
    if {name: entry.sha256 for name, entry in package.files.items()} != {n: e["sha256"] for n, e in manifest.items()}:
        runs.tally.fail("unequal", f"package {when}")


def prepare(work: Path) -> None:
    """A tiny model and its text, made in a process that ends, so that this one has computed nothing when it forks."""
    process = os.fork()
    if process == 0:
        from tests.planner.runtime_fixtures import save_tiny

        save_tiny("llama", work / "model", max_position_embeddings=128)  # no plan is for more
        shutil.copyfile(ROOT / "LICENSE", work / "text.txt")
        os._exit(0)
    os.waitpid(process, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    for module in ("cli", *HEAVY):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="bitfleet-kills-") as folder:
        runs = Runs(Path(folder), arguments.seed)
        prepare(runs.work)
        for job, share in ((trainings, "train"), (streamings, "stream"), (plans, "plan"), (exports, "export")):
            job(runs, max(1, round(SHARES[share] * arguments.kills)))
        os.chdir(ROOT)
    report(runs.tally, arguments.seed)


def report(tally: Tally, seed: int) -> None:
    commands = list(SHARES)
    rows = [(c, *(tally.kills[f"{c} {number.name}"] for number in SIGNALS)) for c in commands]
    table(("killed", *(number.name for number in SIGNALS)), rows)
    for what, details in tally.wrong.items():
        print(f"{what}: {len(details)}", *(f"  {detail}" for detail in details[:5]), sep="\n")
    total = sum(tally.kills.values())
    claims = [
        Claim(f"of {total} kills: {what}", len(tally.wrong.get(what, [])), 0)
        for what in (
            "lost", "unequal", "did not go on", "left over", "wrong exit", "orphans", "left in the temporary folder",
        )
    ]  # fmt: skip
    finish(__file__, claims, seed=seed, kills=dict(tally.kills), wrong=tally.wrong)


if __name__ == "__main__":
    main()
