"""What a package is held to where it lands: by its proof alone, each fault on a real package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from planner.answers import TEXT, TO_ORIGINAL, TO_SUBNET, from_proof
from planner.package import Package, open_package, write_package
from planner.plan import Plan
from planner.probes import PROBES, check_probes
from planner.proof import LEAST_POSITIONS, PROOF, Proof
from planner.request import Budget, Workload
from planner.rows import BROKEN, HOLDS, Row, row
from planner.runtimes.engine import Server, Speaker, Timer
from planner.runtimes.onnxruntime.engine import OnnxEngine, OnnxServer, OnnxSpeaker, OnnxTimer
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.verify import served
from supernet.space import Choice
from tests.planner.packages import RUNTIME, tiny_plan
from tests.planner.runtime_fixtures import RoundedModel, save_tiny
from tests.planner.test_safety import sign

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
WORKLOAD = Workload(128, 1, 32)


def save_sharp(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A model that is as sure of some tokens as trained models are, and whose attention matters."""
    from transformers import AutoModelForCausalLM

    save_tiny(family, folder, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name or "lm_head" in name:
                parameter.mul_(12)
            elif parameter.dim() == 2:
                parameter.mul_(3 if "attn" in name else 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RoundedModel:
    return RoundedModel(save_sharp(tmp_path_factory.mktemp("files") / "model"))


@pytest.fixture(scope="module")
def made(files: RoundedModel, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return write_package(RUNTIME, files, tiny_plan(files, WORKLOAD), tmp_path_factory.mktemp("made") / "package")


@pytest.fixture
def package(made: Package, tmp_path: Path) -> Path:
    return shutil.copytree(made.path, tmp_path / "package")


def answers(package: Path) -> dict[str, Row]:
    return {row.name: row for row in from_proof(RUNTIME, open_package(package))}


def test_a_package_is_what_its_proof_says(made: Package, files: RoundedModel) -> None:
    """And the KL that the proof finds is that of whole distributions, to 5 % or 0.0005."""
    rows = answers(made.path)
    assert rows[TO_SUBNET].verdict == rows[TO_ORIGINAL].verdict == rows[TEXT].verdict == HOLDS, rows
    proof = Proof.load(made.path / PROOF)
    assert len(proof.positions) == LEAST_POSITIONS
    assert max(map(len, proof.windows)) == WORKLOAD.context
    assert not any(row.open for row in rows.values())
    kept, true = _kls(files, made, proof)
    assert rows[TO_SUBNET].measured == pytest.approx(kept, rel=1e-3, abs=1e-6)
    assert abs(kept - true) <= max(0.05 * true, 5e-4), (kept, true)


def _kls(files: RoundedModel, package: Package, proof: Proof) -> tuple[float, float]:
    """KL per token at the proof's positions from the subnet to the package: of what is kept, and of all."""
    from planner.runtimes.onnxruntime import fresh

    model, kept, true, start = files.dequantized(package.plan.subnet), [], [], 0
    for window in proof.windows:
        at = np.flatnonzero((proof.positions >= start) & (proof.positions < start + len(window)))
        here = torch.from_numpy(proof.positions[at] - start).long()
        with torch.no_grad():
            ours = model(torch.from_numpy(window).long()[None]).logits[0][here].double().log_softmax(-1)
        logits = torch.from_numpy(fresh.logits(package.path, window[None].astype(np.int64)))[0][here]
        theirs = logits.double().log_softmax(-1)
        true.append((ours.exp() * (ours - theirs)).sum(-1).numpy())
        said = proof.subnet.at(at)
        kept.append(said.kl(theirs.gather(1, torch.from_numpy(said.ids).long()).numpy()))
        start += len(window)
    return float(np.concatenate(kept).mean()), float(np.concatenate(true).mean())


def places(package: Path, part: str) -> list[tuple[str, int, int]]:
    """(name, offset, length) of the tensors in the weight file whose names hold `part`."""
    graph = onnx.load(package / "model.onnx", load_external_data=False).graph
    found = []
    for tensor in graph.initializer:
        at = {entry.key: entry.value for entry in tensor.external_data}
        if part in tensor.name and at:
            found.append((tensor.name, int(at["offset"]), int(at["length"])))
    return found


def weights(change: Callable[[bytearray, Path], object]) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        data = bytearray((package / "model.onnx.data").read_bytes())
        change(data, package)
        (package / "model.onnx.data").write_bytes(data)

    return damage


def swap_layers(data: bytearray, package: Path) -> None:
    """Codes, scales and zeros of one layer's products for the other's, where they have as many bits."""
    by_name = {name: (offset, length) for name, offset, length in places(package, "layers.")}
    swapped = 0
    for name, (offset, length) in by_name.items():
        other = by_name.get(name.replace("layers.0", "layers.1"))
        if "layers.0" in name and other is not None and other[1] == length:
            mine, theirs = slice(offset, offset + length), slice(other[0], other[0] + length)
            data[mine], data[theirs] = data[theirs], data[mine]
            swapped += 1
    assert swapped


def one_scale_in_a_thousand(data: bytearray, package: Path) -> None:
    rng = np.random.default_rng(0)
    for _, offset, length in places(package, ".scales"):
        scales = np.frombuffer(data, np.float32, length // 4, offset).copy()
        scales[rng.random(len(scales)) < 1e-3] *= 8
        scales[rng.integers(len(scales))] *= 8
        data[offset : offset + length] = scales.tobytes()


def zeroed(data: bytearray, package: Path) -> None:
    data[:] = bytes(len(data))


def other_rope_base(data: bytearray, package: Path) -> None:
    for name, offset, length in places(package, "_cache"):
        width = 16
        rows = length // 4 // width
        frequencies = 1 / 5e5 ** (np.arange(width) / width)
        angles = np.arange(rows)[:, None] * frequencies
        table = (np.cos if "cos" in name else np.sin)(angles).astype(np.float32)
        assert table.nbytes == length
        data[offset : offset + length] = table.tobytes()


@pytest.mark.parametrize("change", [swap_layers, one_scale_in_a_thousand, other_rope_base, zeroed])
def test_the_proof_catches_what_recomputed_hashes_hide(package: Path, change: Any) -> None:
    weights(change)(package)
    sign(package)
    open_package(package).check(RUNTIME)
    rows = answers(package)
    assert rows[TO_SUBNET].verdict == BROKEN, rows[TO_SUBNET]


class With(OnnxRuntime):
    """ONNX Runtime whose packages another engine runs."""

    def __init__(self, engine: OnnxEngine) -> None:
        self.other = engine

    def engine(self) -> OnnxEngine:
        return self.other


class Hurried(OnnxEngine):
    """Reads as many positions of a proof as it is given, and no more."""

    def __init__(self, positions: int) -> None:
        self.left = positions

    def speaker(self, folder: Path) -> Speaker:
        left = self.left

        class Short(OnnxSpeaker):
            def log_probs(self, *asked: Any, **more: Any) -> Any:
                return tuple(found[:left] for found in super().log_probs(*asked, **more))

        return Short(folder)


def hurried(package: Path, positions: int) -> dict[str, Row]:
    return {row.name: row for row in from_proof(With(Hurried(positions)), open_package(package))}


def test_a_proof_that_is_read_in_part_must_reach_the_long_window(made: Package, package: Path) -> None:
    proof = Proof.load(made.path / PROOF)
    assert proof.asked_tokens == 0
    short = int((proof.positions < sum(map(len, proof.windows[:-1]))).sum())
    for done, said in ((0, "none of the proof was read"), (1, "none of the long"), (short, "none of the long")):
        rows = hurried(made.path, done)
        assert all(rows[name].open and said in rows[name].note for name in (TO_SUBNET, TO_ORIGINAL)), rows
    rows = hurried(made.path, short + 1)
    assert rows[TO_SUBNET].verdict == rows[TO_ORIGINAL].verdict == HOLDS, rows
    assert f"{short + 1} positions of {len(proof.positions)}" in rows[TO_SUBNET].note
    weights(zeroed)(package)
    assert hurried(package, short)[TO_SUBNET].verdict == BROKEN  # what is over needs no more to be read


def test_a_proof_must_be_read_past_the_limits_of_the_model(tmp_path: Path) -> None:
    """A window of 100 tokens: neither what was read of the proof nor the proof itself may end before the 101st."""
    files = RoundedModel(save_sharp(tmp_path / "model", "mistral", sliding_window=100))
    path = write_package(RUNTIME, files, tiny_plan(files, WORKLOAD), tmp_path / "package").path
    proof = Proof.load(path / PROOF)
    assert proof.asked_tokens == 101
    assert answers(path)[TO_SUBNET].verdict == HOLDS
    short = replace(proof, windows=tuple(window[:100] for window in proof.windows))
    starts, cut = (np.cumsum([0, *map(len, each.windows)]) for each in (proof, short))
    window = np.searchsorted(starts, proof.positions, side="right") - 1
    token = proof.positions - starts[window]
    kept = np.flatnonzero(token < 100)
    positions = (token + cut[window])[kept].astype(np.int32)
    replace(
        short, positions=positions, subnet=proof.subnet.at(kept), original=proof.original.at(kept),
        promised=proof.promised.at(kept),
    ).save(path / PROOF)  # fmt: skip
    rows = answers(path)
    assert rows[TO_SUBNET].open and rows[TO_ORIGINAL].open
    assert "tokens far, a limit of the model asks for 101" in rows[TO_SUBNET].note


def test_a_package_without_a_proof_is_incomplete(package: Path, bitfleet: Any) -> None:
    (package / PROOF).unlink()
    sign(package)
    done = bitfleet("verify", package)
    assert done.code == 1
    assert done.out.splitlines()[-1].startswith(f"incomplete: {TO_SUBNET} could not be checked")
    assert bitfleet("verify", package, "--allow-unchecked").code == 0


def test_what_a_check_proves_is_said_and_what_it_does_not(made: Package, bitfleet: Any) -> None:
    done = bitfleet("verify", made.path)
    assert done.code == 0, done.out
    assert "not who made them" in done.out
    assert done.out.splitlines()[-1] == "every promise holds"
    report = json.loads(bitfleet("verify", made.path, "--json").out)
    assert report["holds"] and report["complete"] and "not who made them" in report["proves"]


@pytest.mark.parametrize(("measured", "verdict"), [(90, HOLDS), (99, HOLDS), (101, BROKEN), (104, BROKEN)])
def test_a_limit_has_no_tolerance(measured: float, verdict: str) -> None:
    assert row("peak memory", "bytes", 95, measured, 0.05, limit=100).verdict == verdict


def test_a_promise_has_its_band_and_an_estimate_is_none() -> None:
    assert row("time per token", "ms", 10, 11.9, 0.2).verdict == HOLDS
    assert row("time per token", "ms", 10, 12.1, 0.2).verdict == BROKEN
    estimated = row("time per token", "ms", 10, 50, None)
    assert estimated.verdict is None and not estimated.open
    assert row("time per token", "ms", 10, 50, None, limit=40).verdict == BROKEN


def test_a_limit_that_the_user_set_breaks_verify(
    files: RoundedModel, made: Package, tmp_path: Path, bitfleet: Any
) -> None:
    """Nothing that was promised breaks: only what was limited."""
    plan = replace(made.plan, budget=Budget(2**20))
    write_package(RUNTIME, files, plan, tmp_path / "package")
    done = bitfleet("verify", tmp_path / "package")
    assert done.code == 1
    assert done.out.splitlines()[-1] == "broken: peak memory"


PEAK = 2**33


class Disturbed(OnnxEngine):
    """The real measurements, the first `disturbed` of them far too slow and at a peak of PEAK, on a machine `times`
    slower than profiled."""

    def __init__(self, disturbed: int, times: float = 1.0) -> None:
        self.left, self.times = disturbed, times

    def server(self, folder: Path) -> Server:
        engine = self

        class Busy(OnnxServer):
            def measure(self, workload: Workload) -> Any:
                found, engine.left = super().measure(workload), engine.left - 1
                return replace(found, tpot_ms=1e6, peak_bytes=PEAK) if engine.left >= 0 else found

        return Busy(folder)

    def timer(self) -> Timer:
        times = self.times

        class Slow(OnnxTimer):
            def slower(self, *asked: Any) -> float:
                return times

        return Slow()


def timed(made: Package, tpot_ms: float, **changes: Any) -> Plan:
    """The package's plan, made for this machine, with a promise of time."""
    chosen = replace(made.plan.chosen, tpot_ms=tpot_ms, ttft_ms=1e6, **changes)
    return replace(made.plan, compared=(chosen,), latency=made.plan.latency.resting_on("measured"))


@pytest.mark.parametrize(("disturbed", "verdict"), [(1, HOLDS), (9, BROKEN)])
def test_a_promise_of_time_is_broken_only_if_it_is_broken_every_time(
    disturbed: int, verdict: str, files: RoundedModel, made: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.verify.PAUSE_S", 0.0)
    monkeypatch.setattr("planner.verify.TRIES", 2)
    package = write_package(RUNTIME, files, timed(made, 1000.0), tmp_path / "package")
    rows = {row.name: row for row in served(With(Disturbed(disturbed)), package)}
    assert rows["time per token"].verdict == verdict
    assert rows["time per token"].note == "the fastest of 2 tries"
    assert rows["peak memory"].measured == PEAK  # the highest of all tries


def test_a_slower_machine_is_told_apart(made: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine of half the speed explains is not checked; what it does not is broken."""
    monkeypatch.setattr("planner.verify.TRIES", 1)
    for promised, verdict in ((0.6e6, None), (0.1e6, BROKEN)):
        package = replace(made, plan=timed(made, promised))
        (time,) = (row for row in served(With(Disturbed(9, 2.0)), package) if row.name == "time per token")
        assert time.verdict == verdict, time
        assert "100% slower than when it was profiled" in time.note
        assert time.open == (verdict is None)


def test_a_limit_is_broken_however_slow_the_machine_is(
    files: RoundedModel, made: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bitfleet: Any
) -> None:
    monkeypatch.setattr("planner.verify.TRIES", 1)
    monkeypatch.setattr(OnnxTimer, "slower", lambda self, entries, cache: 1e9)
    plan = replace(timed(made, 1e-6), budget=Budget(2**33, tpot_ms=1e-5))
    write_package(RUNTIME, files, plan, tmp_path / "package")
    done = bitfleet("verify", tmp_path / "package", "--allow-unchecked")
    assert done.code == 1
    assert done.out.splitlines()[-1] == "broken: time per token"
    assert "over the limit; this machine is" in done.out


class Answering(OnnxEngine):
    """Goes on as it is told; all else is real."""

    def __init__(self, answers: list[list[int]]) -> None:
        self.answers = answers

    def speaker(self, folder: Path) -> Speaker:
        answers = self.answers

        class Told(OnnxSpeaker):
            def continued(self, *asked: Any) -> list[list[int]]:
                return answers

        return Told(folder)


def test_a_package_stops_where_its_subnet_does(made: Package, package: Path) -> None:
    proof = Proof.load(made.path / PROOF)
    ours = proof.subnet_text.tokens.tolist()
    sure = replace(proof.subnet_text, margins=np.full_like(proof.subnet_text.margins, 1.0))

    def text(found: list[list[int]], stops: list[int]) -> Row:
        replace(proof, subnet_text=sure).save(package / PROOF)
        edit(package / "genai_config.json", lambda data: data["model"].update(eos_token_id=stops))
        return {row.name: row for row in from_proof(With(Answering(found)), open_package(package))}[TEXT]

    assert text(ours, [300]).verdict == HOLDS
    at_once = text([[] for _ in ours], [300])
    assert (at_once.verdict, at_once.measured, at_once.promised) == (BROKEN, 0, len(ours))
    assert text([*ours[:-1], ours[-1][:-1]], [300]).verdict == BROKEN
    stopped = text([[] for _ in ours], [tokens[0] for tokens in ours])
    assert (stopped.verdict, stopped.measured) == (HOLDS, len(ours))
    assert "stop at once" in stopped.note
    assert text([tokens[:1] for tokens in ours], [tokens[0] for tokens in ours]).verdict == BROKEN  # goes on, and stops


def test_kernels_of_the_profile_are_timed_again() -> None:
    from planner.runtimes.onnxruntime.kernels import measure_product

    (entry,) = measure_product(256, 256, Choice(4, 32), (1,), 1, 2**20)
    known = replace(entry, median_ms=entry.median_ms / 50, p10_ms=entry.p10_ms / 100)
    assert OnnxTimer().slower([known], 2**20) > 5
    slow = replace(entry, median_ms=1e3, p90_ms=1e3)
    assert OnnxTimer().slower([slow], 2**20) == 1.0
    assert OnnxTimer().slower([], None) == 1.0


def test_a_proof_that_is_none_is_one_line(package: Path) -> None:
    good = Proof.load(package / PROOF)
    for damaged in (
        replace(good, positions=good.positions[::-1].copy()),
        replace(good, positions=good.positions + 10**6),
        replace(good, subnet=replace(good.subnet, rest=good.subnet.rest - 1)),
        replace(good, subnet=replace(good.subnet, log_probs=good.subnet.log_probs * np.float32(np.inf))),
        replace(good, prompts=-good.prompts),
    ):
        damaged.save(package / PROOF)
        with pytest.raises(ValueError, match="no proof of this version"):
            Proof.load(package / PROOF)
    (package / PROOF).write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match="damaged"):
        Proof.load(package / PROOF)


def test_run_and_verify_import_neither_torch_nor_transformers(made: Package) -> None:
    script = "import sys, cli\ntry: cli.main()\nfinally: print(sorted(m for m in sys.modules if '.' not in m))"
    for command in (("verify", str(made.path)), ("run", str(made.path), "hello", "--max-tokens", "2")):
        line = [sys.executable, "-c", script, *command]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        heavy = {"torch", "transformers", "accelerate", "peft", "onnx", "optuna", "scipy"}
        assert not heavy & set(eval(done.stdout.splitlines()[-1])), command  # noqa: S307


def test_against_the_original_model_another_model_shows(made: Package, files: RoundedModel, tmp_path: Path) -> None:
    def rows(source: Path) -> list[Row]:
        return list(verify_against(made.path, source))

    same = rows(files.path)
    assert [row.verdict for row in same] == [HOLDS, HOLDS], same
    other = save_sharp(tmp_path / "other", "qwen2")
    assert rows(other)[0].verdict == BROKEN


def verify_against(package: Path, source: Path) -> Any:
    from planner.answers import against_model

    return against_model(RUNTIME, open_package(package), str(source))


def probes(package: Path) -> dict[str, Row]:
    return {row.name: row for row in check_probes(RUNTIME, package, True)}


def test_tokens_template_and_stop_ids_are_the_models_own(made: Package) -> None:
    rows = probes(made.path)
    assert set(rows) == {"tokenizer", "chat template", "stop ids"}
    assert all(row.verdict == HOLDS for row in rows.values()), rows


def edit(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_lost_bos_is_caught(package: Path) -> None:
    """The model's own tokenizer puts a token before every text, and the package's does not."""
    edit(package / PROBES, lambda data: [text.update(ids=[1, *text["ids"]]) for text in data["texts"]])
    row = probes(package)["tokenizer"]
    assert row.verdict == BROKEN and row.measured == 0


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda p: (p / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}"), 1),
        (lambda p: (p / "chat_template.jinja").write_text("{% if %}"), 1),
        (lambda p: edit(p / "genai_config.json", lambda d: d["model"].update(eos_token_id=[1, 2])), 2),
        (lambda p: (p / "tokenizer.json").write_text("{}"), 0),
    ],
    ids=["another template", "no template", "stop ids", "no tokenizer"],
)
def test_what_speaks_otherwise_is_caught(package: Path, damage: Callable[[Path], object], name: int) -> None:
    damage(package)
    rows = probes(package)
    assert rows[("tokenizer", "chat template", "stop ids")[name]].verdict == BROKEN, rows


def test_a_template_that_does_not_end_is_caught_in_time(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.runtimes.asking.SPEAKING_S", 4.0)
    loop = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(9) %}{% endfor %}"
    (package / "chat_template.jinja").write_text(loop + "{% endfor %}{% endfor %}")
    rows = probes(package)
    assert rows["chat template"].verdict == BROKEN and rows["tokenizer"].verdict == HOLDS, rows


def test_verify_takes_little_more_memory_than_the_package(made: Package) -> None:
    """Its own process and each that it starts: at most the package's peak and 200 MB."""
    script = """if True:
        import resource, sys, cli
        try:
            cli.main()
        finally:
            from planner.runtimes.alone import peak_bytes  # what getrusage says begins with the parent's
            print(peak_bytes(), file=sys.stderr)
            print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
    """
    line = [sys.executable, "-c", script, "verify", str(made.path), "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (served,) = (row["measured"] for row in json.loads(done.stdout)["rows"] if row["name"] == "peak memory")
    own, children = map(int, done.stderr.splitlines()[-2:])
    assert max(own, children) <= served + 200e6, (own, children, served)
