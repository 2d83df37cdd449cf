"""The whole job through the command line, on a tiny real model: train, evaluate, plan, export, verify, run."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from commands.tuning import Kept
from planner.pipeline import Own
from planner.plan import Plan
from supernet.checkpoint import open_supernet
from tests.launch import PLAIN, TWO, launch
from tests.planner.runtime_fixtures import save_tiny
from tests.warm import run

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "laptop-i5-1240p-8gb"
DATA = str(ROOT / "LICENSE")  # text that is there; sampling it from the model is tested with the supernet
TRAIN = ("--bits", "2,4,8", "--group-size", "32", "--quantizer", "rtn", "--data", DATA, "--steps", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def supernet(model: Path) -> Path:
    out = model.parent / "net"
    done = command("train", model, *TRAIN, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def plan(supernet: Path) -> Path:
    out = supernet.parent / "plan.json"
    done = command(
        "plan",
        supernet,
        "--mem",
        "200MB",
        "--context",
        128,
        "--prompt-tokens",
        64,
        "--device",
        DEVICE,
        "--trials",
        20,
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def package(plan: Path) -> Path:
    out = plan.parent / "package"
    done = command("export", plan, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own."""
    return run([sys.executable, str(ROOT / "cli.py"), *map(str, arguments)])


def test_training_says_what_the_adapters_won_and_what_comes_next(bitfleet: Any, model: Path, tmp_path: Path) -> None:
    lora = ("--grid", "int", "--adapter", "lora", "--sampler", "uniform")
    done = bitfleet("train", model, *TRAIN, *lora, "--out", tmp_path / "net")
    assert done.code == 0, done.err
    assert "CODES ALONE" in done.out
    assert done.out.splitlines()[-1] == f"next: bitfleet plan {tmp_path / 'net'} --mem SIZE"
    again = bitfleet("train", model, *TRAIN, "--out", tmp_path / "net")
    assert again.code == 2
    assert "already holds a supernet" in again.error


def test_codes_alone_are_shown_beside_plain_rounding(bitfleet: Any, model: Path, tmp_path: Path) -> None:
    done = bitfleet("train", model, *TRAIN, "--awq", "0", "--train-bits", "none", "--out", tmp_path / "net")
    assert done.code == 0, done.err
    assert "codes alone; KL per token" in done.out
    assert "ROUNDED TO NEAREST" in done.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--group-size", "48"], "use 16, 32, 64"),
        (["--bits", "2,9"], "2 to 8"),
        (["--data", "no-such-text.txt"], "no-such-text.txt"),
        (["--steps", "0"], "steps"),
        (["--teacher", "largest"], "use sampler sandwich, or teacher full"),
        (["--bits", "4,8", "--schedule", "progressive"], "such as 2 and 3, or schedule constant"),
    ],
    ids=["group size", "bits", "data", "steps", "teacher", "schedule"],
)
def test_training_refuses_what_cannot_work_and_writes_nothing(
    bitfleet: Any, model: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    done = bitfleet("train", model, *TRAIN, *arguments, "--out", tmp_path / "net")
    assert done.code == 2, done.err
    assert told in done.error
    assert not (tmp_path / "net").exists()


def test_training_systems_are_chosen_by_name(bitfleet: Any, model: Path, tmp_path: Path) -> None:
    system = {"--grid": "int", "--sampler": "sandwich", "--schedule": "delayed", "--teacher": "largest"}
    chosen = [part for pair in system.items() for part in pair]
    done = bitfleet("train", model, *TRAIN, *chosen, "--out", tmp_path / "net")
    assert done.code == 0, done.err
    recipe = json.loads((tmp_path / "net" / "supernet.json").read_text())["info"]["recipe"]
    assert {option: recipe[option.removeprefix("--")] for option in system} == system


def test_two_processes_train_as_the_docs_say(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "net"
    done = launch((*PLAIN, *TWO), ROOT / "cli.py", "train", model, *TRAIN, "--out", out)
    assert done.stdout.count("next: ") == 1
    assert done.stdout.splitlines()[-1] == f"next: bitfleet plan {out} --mem SIZE"


def test_text_that_is_too_short_is_refused(bitfleet: Any, model: Path, supernet: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    trained = bitfleet("train", model, *TRAIN, "--data", short, "--out", tmp_path / "net")
    evaluated = bitfleet("evaluate", supernet, "--text", short)
    for done in (trained, evaluated):
        assert done.code == 2, done.err
        assert "give more text" in done.error


def test_interrupted_training_exits_130_and_goes_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "net"
    line = [sys.executable, str(ROOT / "cli.py"), "train", str(model), *TRAIN[:-1], "2000", "--out", str(out)]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job's children ignore it otherwise
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    assert process.stderr is not None
    for said in process.stderr:
        if "train, KL" in said:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(300) == 130, rest
    assert "error: interrupted" in rest
    assert "Traceback" not in rest
    unfinished = command("plan", out, "--mem", "1GB", "--device", DEVICE)
    assert unfinished.returncode == 2
    assert "--resume" in unfinished.stderr


def test_evaluate_as_text_and_as_json(bitfleet: Any, supernet: Path, plan: Path) -> None:
    lines = bitfleet("evaluate", supernet).out.splitlines()
    texts = ["held-out", "Python manual"]
    heads = [re.split(r"  +", line) for line in lines if "FULL MODEL" in line]
    assert [head[0].split(":")[0] for head in heads] == texts
    assert all(head[1:] == ["FULL MODEL", "2 bits", "4 bits", "8 bits"] for head in heads)
    assert sum(line.startswith("KL, 99.9 %") for line in lines) == len(texts)
    by_bits = json.loads(bitfleet("evaluate", supernet, "--json").out)
    losses = [quality["kl"] for quality in by_bits]
    assert losses == sorted(losses, reverse=True)
    for quality in by_bits:
        assert list(quality["texts"]) == texts
        assert quality["kl"] == pytest.approx(sum(quality["texts"][text]["kl"] for text in texts) / 2)
    (planned,) = json.loads(bitfleet("evaluate", supernet, "--subnet", plan, "--json").out)
    measured = json.loads(plan.read_text())["compared"][0]["measured"]["kl"]
    assert planned["kl"] == pytest.approx(measured, abs=2e-3)  # finalists are measured in bfloat16


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--bits", "3"], "use one of 2, 4, 8"),
        (["--bits", "4", "--subnet", "x.json"], "exclude each other"),
        (["--bits", "4", "--package", "x"], "leave --subnet and --bits out"),
        (["--package", "no-such"], "no package at no-such"),
        (["--second-half"], "give --text FILE"),
        (["--subnet", "no-such.json"], "no-such.json"),
    ],
    ids=["bits", "both", "package and bits", "missing package", "half of nothing", "missing"],
)
def test_evaluate_refuses_what_the_supernet_has_not(
    bitfleet: Any, supernet: Path, arguments: list[str], told: str
) -> None:
    done = bitfleet("evaluate", supernet, *arguments)
    assert done.code == 2
    assert told in done.error


def test_plan_prints_the_promise_the_bits_and_the_next_command(
    bitfleet: Any, supernet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bitfleet", "plan", "--storage", "redis://me:my-secret@db"])
    out = tmp_path / "plan.json"
    options = ("--context", 128, "--prompt-tokens", 64, "--device", DEVICE, "--trials", 20, "--out", out)
    done = bitfleet("plan", supernet, "--mem", "0.2 GB", *options)
    assert done.code == 0, done.err
    for said in (
        "peak memory",
        "200.0 MB",
        "time per token",
        "tokens per second",
        "estimate",
        "bits by layer",
        "qkv",
        "was not measured",
        "KL, held-out",
        "KL, Python manual",
        "measured with 95 % intervals on held-out",
    ):
        assert said in done.out
    assert done.out.splitlines()[-1] == f"next: bitfleet export {out} --out DIR"
    printed = json.loads(bitfleet("plan", supernet, "--mem", "200MB", *options, "--json").out)
    assert printed == json.loads(out.read_text())
    assert printed["command"] == "bitfleet plan --storage redis://db"


def test_a_plan_for_a_known_device_is_quick_and_loads_no_torch(supernet: Path, plan: Path) -> None:
    """The finalists were measured by the first plan, so a second one is arithmetic."""
    code = "import sys, cli\ntry: cli.main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    options = ["plan", supernet, "--mem", "200MB", "--context", "128", "--device", DEVICE, "--trials", "20"]
    line = [sys.executable, "-c", code, *options, "--out", plan.with_name("again.json")]
    done = subprocess.run(list(map(str, line)), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"


def test_minutes_of_search_are_kept_beside_the_supernet_and_go_on(
    bitfleet: Any, supernet: Path, tmp_path: Path
) -> None:
    net, out = tmp_path / "net", tmp_path / "plan.json"
    shutil.copytree(supernet, net)
    options = ("--runtime", "onnxruntime", "--context", 128, "--prompt-tokens", 64, "--device", DEVICE, "--out", out)
    smallest = float(bitfleet("plan", net, "--mem", "10MB", *options).error.rpartition("use --mem ")[2].split("MB")[0])
    tight = ("--mem", f"{smallest + 0.02:.2f}MB", *options)
    plain = json.loads(bitfleet("plan", net, *tight, "--json").out)
    assert not (net / "searches.journal").exists()
    first, second = (json.loads(bitfleet("plan", net, *tight, "--minutes", 0.1, "--json").out) for _ in range(2))
    assert (net / "searches.journal").is_file() and (net / "searching.safetensors").is_file()
    traces = [one["search"][-1] for one in (first, second)]
    assert all(trace["solver"] == "Optuna, steps along the measured slope" for trace in traces)
    assert traces[1]["trials"] >= traces[0]["trials"] > 1
    losses = [one["compared"][0]["measured"]["kl"] for one in (plain, first, second)]
    assert losses[0] >= losses[1] >= losses[2]
    (net / "searching.safetensors").write_bytes(b"hello")
    done = bitfleet("plan", net, *tight, "--minutes", 0.1)
    assert done.code == 2
    assert done.error == f"{net}/searching.safetensors is damaged; remove it, and it is made again"
    (net / "searches.journal").write_text("hello\n")
    done = bitfleet("plan", net, *tight, "--minutes", 0.1)
    assert done.code == 2 and f"{net}/searches.journal is damaged" in done.error
    assert len(done.err.splitlines()) == 1  # before any work
    unknown = bitfleet("plan", net, *tight, "--minutes", 0.1, "--storage", "nowhere")
    assert unknown.code == 2 and "--storage is an address that Optuna can open" in unknown.error


def test_a_front_is_measured_and_a_row_of_it_is_a_plan(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    net, out, page = shutil.copytree(supernet, tmp_path / "net"), tmp_path / "plan.json", tmp_path / "plan.html"
    asked = ("plan", net, "--runtime", "onnxruntime", "--context", 128, "--prompt-tokens", 64, "--device", DEVICE)
    search = (*asked, "--front", "--minutes", 0.1, "--out", out)
    done = bitfleet(*search, "--html", page)
    assert done.code == 0, done.err
    assert re.search(r"searched: \d+ subnets, \d+ of them on the front, KL [\d.e-]+ at best, on text", done.err)
    made = Plan.load(out)
    assert made.search[-1]["trials"] >= len(made.front) > 2 and all(point.measured for point in made.front)
    points = [(point.memory_bytes, point.tpot_ms, point.kl) for point in made.front]
    assert points == sorted(points, key=lambda point: (point[0], point[2]))
    for a, b in permutations(points, 2):
        assert not all(x <= y for x, y in zip(a, b, strict=True))
    assert made.chosen.kl == min(point.kl for point in made.front)
    rows = re.findall(r"^[\d.]+ bits.* (--mem \S+ --latency \S+)$", done.out, re.M)
    assert len(rows) == len(points)
    assert all(f"<code>{row}</code>" in page.read_text() for row in rows)
    middle = len(rows) // 2
    again = bitfleet(*search, *rows[middle].split(), "--json")
    assert again.code == 0, again.err
    taken = json.loads(again.out)
    assert taken["compared"][0]["measured"]["kl"] <= points[middle][2]
    journal = (net / "searches.journal").read_text()
    assert len(set(re.findall(r'"study_name": ?"(\w+)"', journal))) == 1  # within whatever limits


@pytest.mark.usefixtures("warm_workers")
def test_workers_share_the_minutes_of_search(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    net, out = shutil.copytree(supernet, tmp_path / "net"), tmp_path / "plan.json"
    asked = ("plan", net, "--runtime", "onnxruntime", "--context", 128, "--prompt-tokens", 64, "--device", DEVICE)
    smallest = float(bitfleet(*asked, "--mem", "10MB").error.rpartition("use --mem ")[2].split("MB")[0])
    tight = (*asked, "--mem", f"{smallest + 0.02:.2f}MB", "--out", out)
    done = bitfleet(*tight, "--minutes", 0.15, "--workers", 2)
    assert done.code == 0, done.err
    assert re.search(r"expecting up to [\d.]+ [MG]B of memory for 2 workers", done.err)
    assert re.search(r"searching for 0.15 min from \d subnets, 2 workers with \d threads? each", done.err)
    assert re.search(r"searched: \d+ subnets, KL [\d.]+ at best, on text", done.err)
    journal = (net / "searches.journal").read_text()
    assert len(set(re.findall(r'"worker": ?"(\w+)"', journal))) == 2
    many = bitfleet(*tight, "--minutes", 0.15, "--workers", 10_000)
    assert many.code == 2 and re.search(r"10000 workers take .* are there; (use|leave) --workers", many.error)
    assert "--workers share the search of --minutes" in bitfleet(*tight, "--workers", 2).err


def test_searching_needs_the_full_model_and_says_so_at_once(
    bitfleet: Any, model: Path, supernet: Path, tmp_path: Path
) -> None:
    net = tmp_path / "net"
    shutil.copytree(supernet, net)
    index = net / "supernet.json"
    index.write_text(index.read_text().replace(str(model), str(tmp_path / "gone")))
    done = bitfleet("plan", net, "--mem", "200MB", "--device", DEVICE, "--context", 128, "--minutes", 1)
    assert done.code != 0
    assert f"searching needs the full model, and {tmp_path / 'gone'} is gone" in done.error


def test_a_plan_is_tuned_and_its_package_is_of_what_was_tuned(
    bitfleet: Any, supernet: Path, plan: Path, tmp_path: Path
) -> None:
    net, out, package = shutil.copytree(supernet, tmp_path / "net"), tmp_path / "plan.json", tmp_path / "package"
    asked = ("plan", net, "--runtime", "onnxruntime", "--mem", "200MB", "--disk", "110KB", "--context", 128)
    options = ("--prompt-tokens", 64, "--device", DEVICE, "--trials", 20, "--out", out)
    plain = json.loads(bitfleet(*asked, *options, "--json").out)
    assert "tuned" not in plain and not (net / "tuned").exists()
    done = bitfleet(*asked, *options, "--tune-steps", 12)
    assert done.code == 0, done.err
    made = json.loads(out.read_text())
    own = made["tuned"]
    now, before = made["compared"][0]["measured"]["kl"], plain["compared"][0]["measured"]["kl"]
    assert own["before"]["kl"] == before > now
    assert f"KL {now:.4g} instead of {before:.4g}" in done.out
    assert "expecting up to" in done.err and f"tuned: KL {now:.4g}, {before:.4g} before" in done.err
    assert done.out.splitlines()[-2].startswith("again: bitfleet ") and "--tune-steps 12" in done.out
    kept = net / "tuned" / f"{own['sha256'][:16]}.safetensors"
    assert kept.is_file()
    assert json.loads(bitfleet(*asked, *options, "--tune-steps", 12, "--json").out)["tuned"] == own
    losses = json.loads(bitfleet("evaluate", net, "--subnet", out, "--json").out)
    assert losses[0]["kl"] == pytest.approx(now, rel=0.05)
    assert "before it was tuned" in bitfleet("show", out, plan).out
    assert bitfleet("export", out, "--out", package).code == 0
    for net_of, complete in ((net, True), (supernet, False)):
        report = json.loads(bitfleet("verify", package, "--supernet", net_of, "--json").out)
        rows = {row["name"]: row for row in report["rows"]}
        assert rows["KL to the supernet"]["holds"] is True
        assert rows["KL to the supernet, in full"]["holds"] is (True if complete else None)
        assert report["complete"] is complete
    assert bitfleet("export", out, "--out", tmp_path / "all", "--runtime", "llamacpp,onnxruntime").code == 0
    folders = [tmp_path / "all" / name for name in ("onnxruntime", "llamacpp")]
    told = bitfleet("verify", folders[0], "--beside", folders[1], "--json")
    rows = {row["name"]: row for row in json.loads(told.out)["rows"]}
    assert rows["KL to llamacpp"]["measured"] < 0.01
    _tunings_that_are_damaged_are_made_again(net, Plan.load(out), kept)
    kept.unlink()
    for gone in (("export", out, "--out", tmp_path / "more"), ("evaluate", net, "--subnet", out)):
        done = bitfleet(*gone)
        assert done.code == 2
        assert f"the plan was tuned, and its numbers are not at {kept}" in done.error


def _tunings_that_are_damaged_are_made_again(net: Path, made: Plan, kept: Path) -> None:
    listed = kept.with_name("tunings.json")
    ((key, said),) = json.loads(listed.read_text()).items()
    asked, tunings = ("the same",), Kept(open_supernet(net))
    key = tunings._key(asked)

    def known() -> object:
        return tunings.known(asked, made.subnet)

    wrong = [None, 5, "x", [], {}, {"line": 3}, {**said, "more": 1}, {**said, "tuned": {}}]
    wrong += [{**said, "measured": {"kl": value}} for value in ("x", math.nan)]
    wrong += [{**said, "tuned": {**said["tuned"], "sha256": value}} for value in ("../x", "0" * 64)]
    for damaged in (b"", b"[1, 2]", b'{"a": ', b"\xff", *(json.dumps({key: one}).encode() for one in wrong)):
        listed.write_bytes(damaged)
        assert known() is None, damaged
    listed.write_text(json.dumps({key: said}))
    assert isinstance(known(), Own)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-4])
    assert known() is None
    kept.write_bytes(whole)


def test_tuning_needs_the_full_model_and_says_so_at_once(
    bitfleet: Any, model: Path, supernet: Path, tmp_path: Path
) -> None:
    net = shutil.copytree(supernet, tmp_path / "net")
    index = net / "supernet.json"
    index.write_text(index.read_text().replace(str(model), str(tmp_path / "gone")))
    done = bitfleet("plan", net, "--mem", "200MB", "--device", DEVICE, "--context", 128, "--tune", 1)
    assert done.code == 2
    assert f"tuning needs the full model, and {tmp_path / 'gone'} is gone" in done.error
    both = bitfleet("plan", net, "--mem", "200MB", "--device", DEVICE, "--tune", 1, "--tune-steps", 2)
    assert both.code == 2


def test_a_budget_that_cannot_be_met_exits_3_and_names_the_smallest(
    bitfleet: Any, supernet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    options = ("--context", 128, "--prompt-tokens", 64, "--device", DEVICE, "--trials", 20, "--out", out)
    done = bitfleet("plan", supernet, "--mem", "10MB", *options)
    assert done.code == 3
    assert not out.exists()
    smallest = done.error.rpartition("use --mem ")[2]
    assert bitfleet("plan", supernet, "--mem", smallest, *options).code == 0


def test_a_context_beyond_the_models_is_refused(bitfleet: Any, supernet: Path) -> None:
    done = bitfleet("plan", supernet, "--mem", "1GB", "--context", 600, "--device", DEVICE)
    assert done.code == 2
    assert "--context 512" in done.error


def test_plan_without_a_device_is_for_this_machine(bitfleet: Any, supernet: Path, own_cache: Path) -> None:
    """A cached profile is used, with the memory that is available now."""
    import dataclasses

    from profiles.detect import detect

    found, _ = detect("cpu", measure_bandwidth=False)
    known = dataclasses.replace(found, available_bytes=1, bandwidth_bytes_per_s=1e10, bandwidth_basis="theoretical")
    known.save(own_cache / "device.json")
    out = own_cache / "plan.json"
    done = bitfleet("plan", supernet, "--mem", "200MB", "--context", 128, "--trials", 20, "--out", out)
    assert done.code == 0, done.err
    made = json.loads(out.read_text())
    assert made["device"]["name"] == found.name
    assert made["device"]["usable_bytes"] > 1


def test_export_verify_and_run(bitfleet: Any, supernet: Path, package: Path) -> None:
    done = bitfleet("verify", package, "--supernet", supernet, "--json")
    assert done.code == 0, done.out
    report = json.loads(done.out)
    assert report["holds"] and report["complete"]
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["weights on disk"]["holds"] is True
    assert rows["KL to the supernet"]["holds"] is True
    assert rows["KL to the supernet, in full"]["holds"] is True
    assert rows["time per token"]["holds"] is None  # the plan is for a device of the catalogue
    text = bitfleet("verify", package).out
    for said in ("LIMIT", "PROMISED", "MEASURED", "every promise holds"):
        assert said in text
    assert bitfleet("run", package, "Hello", "--max-tokens", 4).code == 0


def test_a_supernet_that_is_not_the_packages_leaves_verify_incomplete(bitfleet: Any, package: Path) -> None:
    done = bitfleet("verify", package, "--supernet", package.parent / "none")
    assert done.code == 1
    assert "incomplete: KL to the supernet, in full could not be checked" in done.out.splitlines()[-1]
    assert bitfleet("verify", package, "--supernet", package.parent / "none", "--allow-unchecked").code == 0


def test_a_damaged_package_is_refused(bitfleet: Any, package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "copy")
    weights = copy / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 0xFF
    weights.write_bytes(data)
    done = bitfleet("verify", copy)
    assert done.code == 2
    assert "SHA-256" in done.error
    weights.unlink()
    assert "lacks model.onnx.data" in bitfleet("verify", copy).error


def test_a_moved_supernet_is_asked_for_and_recognised(
    bitfleet: Any, supernet: Path, plan: Path, tmp_path: Path
) -> None:
    moved, out = tmp_path / "plan.json", tmp_path / "package"
    data = json.loads(plan.read_text()) | {"supernet": str(tmp_path / "gone")}
    moved.write_text(json.dumps(data))
    done = bitfleet("export", moved, "--out", out)
    assert done.code == 2
    assert "say where it is now: --supernet DIR" in done.error
    moved.write_text(json.dumps(data | {"fingerprint": "0" * 16}))
    done = bitfleet("export", moved, "--out", out, "--supernet", supernet)
    assert done.code == 2
    assert "made for weights that have changed since" in done.error
    moved.write_text(json.dumps(data))
    assert bitfleet("export", moved, "--out", out, "--supernet", supernet).code == 0
    assert (out / "manifest.json").is_file()


def test_a_folder_with_something_else_is_not_overwritten(bitfleet: Any, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = bitfleet("export", plan, "--out", tmp_path)
    assert done.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_write_that_fails_exits_5_and_leaves_nothing(plan: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails a write the way a full disk does."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    out = tmp_path / "package"
    line = [sys.executable, ROOT / "cli.py", "export", plan, "--out", out]
    own = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(line, preexec_fn=small_files, env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 5, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_within_a_loss_needs_no_memory_limit(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    """The device's memory is the limit then; the page is written beside the plan."""
    options = ("--context", 128, "--prompt-tokens", 64, "--device", DEVICE, "--runtime", "onnxruntime")
    out, page = tmp_path / "plan.json", tmp_path / "plan.html"
    done = bitfleet("plan", supernet, "--max-loss", "900%", *options, "--out", out, "--html", page)
    assert done.code == 0, done.err
    made = json.loads(out.read_text())
    assert made["budget"]["max_kl"] == pytest.approx(math.log(10)) and made["limits"]["memory_bytes"] >= 8 * 10**9
    assert made["compared"][0]["measured"]["kl"] <= made["limits"]["max_kl"]
    assert "the smallest within a loss of" in done.out and made["front"] and "<polyline" in page.read_text()
    refused = bitfleet("plan", supernet, "--max-loss", "0.0000001", *options, "--out", out)
    assert refused.code == 3 and "--max-loss" in refused.error
