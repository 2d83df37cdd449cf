"""A stranger's package: what must not be loaded is refused by its name, before anything of it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from planner.package import MANIFEST, open_package
from planner.plan import Plan
from planner.runtimes.onnxruntime import fresh
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from profiles.kernels import KernelEntry
from records.errors import InputError, SystemFailure
from tests.planner.packages import tiny_package

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_package(tmp_path_factory.mktemp("made")).path


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "package")


def sign(package: Path, **changes: Any) -> None:
    """What a forger does: the manifest lists what is there, with its hashes."""
    manifest = json.loads((package / MANIFEST).read_text())
    names = [path.name for path in package.iterdir() if path.name != MANIFEST and path.is_file()]
    manifest["files"] = {
        name: {
            "sha256": hashlib.sha256((package / name).read_bytes()).hexdigest(),
            "bytes": (package / name).stat().st_size,
        }
        for name in names
    }
    (package / MANIFEST).write_text(json.dumps(manifest | changes))


def refused(package: Path, said: str) -> None:
    with pytest.raises(InputError) as found:
        open_package(package).check(OnnxRuntime())
    assert said in str(found.value)


def test_what_an_exporter_wrote_is_loaded(package: Path) -> None:
    open_package(package).check(OnnxRuntime())
    sign(package)
    open_package(package).check(OnnxRuntime())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "more.json").write_text("{}"), "more.json is not"),
        (lambda p: (p / "sub").mkdir(), "regular files alone"),
        (lambda p: os.mkfifo(p / "pipe.json"), "regular files alone"),
        (lambda p: (p / "tokenizer.json").rename(p.parent / "t") and (p / "tokenizer.json").symlink_to("../t"), "none"),
        (lambda p: (p / ".hidden.json").write_text("{}") and sign(p), "plain name"),
        (lambda p: (p / "numpy.py").write_text("") or sign(p), "numpy.py"),
        (lambda p: (p / "ops.so").write_text("") or sign(p), "ops.so"),
        (lambda p: (p / "tokenizer.json").unlink() or sign(p), "lists no tokenizer.json"),
    ],
    ids=["unlisted", "folder", "pipe", "link", "hidden", "python", "library", "incomplete"],
)
def test_a_folder_holds_the_files_of_its_manifest_alone(package: Path, damage: Damage, said: str) -> None:
    damage(package)
    refused(package, said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {}}, "lists no model.onnx"),
        ({"files": {"../tokenizer.json": {"sha256": "0" * 64, "bytes": 1}}}, "plain name"),
        ({"files": {"a/b.json": {"sha256": "0" * 64, "bytes": 1}}}, "plain name"),
        ({"files": {"model.onnx": {"sha256": "x", "bytes": 1}}}, "64 hexadecimal digits"),
        ({"files": {"model.onnx": {"sha256": "0" * 64, "bytes": -1}}}, "at least 0"),
        ({"files": []}, "damaged"),
    ],
    ids=["empty", "above", "below", "hash", "bytes", "list"],
)
def test_a_manifest_lists_every_file_plainly(package: Path, changes: Any, said: str) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    if not changes["files"]:  # the folder as empty as the listing
        for path in package.iterdir():
            path.name == MANIFEST or path.unlink()
    (package / MANIFEST).write_text(json.dumps(manifest | changes))
    refused(package, said)


@pytest.mark.parametrize("value", ["Infinity", "NaN", "-1", '"1"', "null", "1e999"])
@pytest.mark.parametrize("name", ["memory_bytes", "tpot_ms", "ttft_ms", "disk_bytes"])
def test_promises_are_finite_numbers(package: Path, name: str, value: str) -> None:
    text = (package / MANIFEST).read_text()
    promised = json.loads(text)["plan"]["compared"][0][name]
    changed = text.replace(f'"{name}": {json.dumps(promised)}', f'"{name}": {value}')
    assert changed != text
    (package / MANIFEST).write_text(changed)
    refused(package, "is not JSON that is read here" if value in ("Infinity", "NaN", "1e999") else name)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"in_features": 10**9}, "to time again"), ({"rows": 10**9}, "to time again"), ({"median_ms": 0.0}, "above 0")],
)
def test_kernels_to_time_again_are_few_and_small(package: Path, change: dict[str, float], said: str) -> None:
    """Whoever makes a package says what `verify` times where a promise of time is broken."""
    entry = KernelEntry("onnxruntime", 4, 32, 1, 1024, 1024, 1, 0.2, 0.1, 0.3, 5)
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["plan"]["device"]["kernels"] = [asdict(entry)]
    (package / MANIFEST).write_text(json.dumps(manifest))
    opened = open_package(package)
    opened.check(OnnxRuntime())
    assert opened.plan.device["kernels"] == [entry]
    assert Plan.from_json(opened.plan.to_json()) == opened.plan
    manifest["plan"]["device"]["kernels"][0] |= change
    (package / MANIFEST).write_text(json.dumps(manifest))
    refused(package, said)


def settings(*path: str, **changes: Any) -> Damage:
    def damage(package: Path) -> None:
        file = package / "genai_config.json"
        config = json.loads(file.read_text())
        at = config
        for key in path:
            at = at[key]
        at.update(changes)
        file.write_text(json.dumps(config))

    return damage


SESSION = ("model", "decoder", "session_options")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (settings(*SESSION, custom_ops_library="ops.so"), "custom_ops_library"),
        (settings(*SESSION, provider_options=[{"cuda": {}}]), "provider_options"),
        (settings(*SESSION, provider_options=[{"cpu": {"library_path": "x"}}]), "provider_options"),
        (settings(*SESSION, enable_profiling="/tmp/x"), "enable_profiling"),
        (settings(*SESSION, intra_op_num_threads=10**9), "intra_op_num_threads"),
        (settings("model", "decoder", filename="../model.onnx"), "filename"),
        (settings("model", "decoder", filename="/etc/passwd"), "filename"),
        (settings("model", "decoder", pipeline=[{}]), "pipeline"),
        (settings("model", "decoder", "inputs", past_key_names="%n%n%s"), "past_key_names"),
        (settings("model", vision={"filename": "v.onnx"}), "vision"),
        (settings("model", context_length=2**62), "context_length"),
        (settings("model", vocab_size=True), "vocab_size"),
        (settings("search", temperature=float("inf")), "finite"),
        (settings("search", num_beams=4000), "num_beams"),
        (settings(engine={}), "engine"),
        (settings("search", max_length=127), "room for 127 tokens, the plan is for 128"),
        (settings("model", "decoder", num_hidden_layers=3), "has 3 layers"),
        (settings("model", "decoder", num_hidden_layers=2**24), "has 16777216 layers"),
        (settings("model", "decoder", num_key_value_heads=2**20), "has 1048576 heads"),
        (settings("model", "decoder", head_size=1), "heads of 1 "),
        (lambda p: (p / "genai_config.json").write_text('{"model": {}, "model": {}}'), "twice"),
        (lambda p: (p / "genai_config.json").write_text("[" * 100_000), "recursion"),
        (lambda p: (p / "genai_config.json").write_bytes(b"\xff"), "utf-8"),
        (lambda p: (p / "genai_config.json").write_text('{"model": {"vocab_size": 9}}'), "must set model.eos_token_id"),
        (lambda p: (p / "genai_config.json").write_text("{}"), "must set model.vocab_size"),
    ],
)
def test_settings_that_no_exporter_writes_are_refused(package: Path, damage: Damage, said: str) -> None:
    damage(package)
    sign(package)
    refused(package, said)


def graph(change: Callable[[onnx.ModelProto], object]) -> Damage:
    def damage(package: Path) -> None:
        model = onnx.load(package / "model.onnx", load_external_data=False)
        change(model)
        (package / "model.onnx").write_bytes(model.SerializeToString())

    return damage


def place(key: str, value: str) -> Damage:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    return graph(change)


def cache_of(model: onnx.ModelProto) -> Any:
    return next(i for i in model.graph.input if i.name.startswith("past_key_values."))


def within_if(model: onnx.ModelProto) -> None:
    """Hidden one graph deeper."""
    inner = helper.make_graph([helper.make_node("Loop", [], ["x"])], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (graph(lambda m: m.graph.node.append(helper.make_node("Evil", [], [], domain="my.ops"))), "my.ops"),
        (graph(lambda m: m.graph.node.append(helper.make_node("EPContext", [], [], domain="com.microsoft"))), "EPCont"),
        (graph(lambda m: m.graph.node.append(helper.make_node("Loop", [], []))), "Loop"),
        (graph(within_if), "Loop"),
        (graph(lambda m: m.functions.append(onnx.FunctionProto(name="f"))), "function"),
        (graph(lambda m: setattr(cache_of(m).type.tensor_type.shape.dim[1], "dim_value", 7)), "reads others in"),
        (graph(lambda m: setattr(cache_of(m).type.tensor_type.shape.dim[3], "dim_param", "any")), "reads others in"),
        (graph(lambda m: cache_of(m).type.tensor_type.shape.dim.add()), "reads others in"),
        (graph(lambda m: setattr(cache_of(m), "name", "past_key_values.9.key")), "keys and values of others"),
        (graph(lambda m: m.graph.input.remove(cache_of(m))), "keys and values of others"),
        (place("location", "../../secret"), "only point into"),
        (place("location", "/etc/passwd"), "only point into"),
        (place("location", "tokenizer.json"), "only point into"),
        (place("offset", "-1"), "beyond the end"),
        (place("length", str(2**40)), "beyond the end"),
        (place("offset", "1e3"), "beyond the end"),
        (lambda p: (p / "model.onnx").write_bytes(b"\x3b"), "wire type"),
        (lambda p: (p / "model.onnx").write_bytes(b"\x3a\xff\xff\x03"), "beyond the message"),
    ],
)
def test_graphs_that_no_exporter_writes_are_refused(package: Path, damage: Damage, said: str) -> None:
    damage(package)
    sign(package)
    refused(package, said)


def test_what_hangs_is_one_line_and_a_failure_of_the_system(
    package: Path, monkeypatch: pytest.MonkeyPatch, bitfleet: Any
) -> None:
    monkeypatch.setattr("planner.runtimes.child.PATIENCE_S", 0.01)
    monkeypatch.setattr("planner.runtimes.child.TOKEN_S", 0.0)
    done = bitfleet("verify", package)
    assert done.code == 5
    assert "must end, it did not within 0 s" in done.error
    for asked in (
        lambda: fresh.logits(package, np.zeros((1, 4), np.int64)),
        lambda: fresh.continued(package, np.zeros((1, 4), np.int32), 2),
        lambda: fresh.log_probs(package, [np.zeros(4, np.int32)], np.zeros(1, np.int32), np.zeros((1, 1)), 0.0),
        lambda: fresh.slower([KernelEntry("onnxruntime", 4, 32, 1, 1024, 1024, 1, 0.2, 0.1, 0.3, 5)], 2**20),
    ):
        with pytest.raises(SystemFailure, match="must end"):
            asked()


def test_an_operator_cannot_hide_behind_a_later_one(package: Path) -> None:
    """A parser with a schema keeps the last of two operators; both must be allowed."""
    damage = graph(lambda m: m.graph.node.append(helper.make_node("Mul", [], [], name="padding")))
    damage(package)
    data = (package / "model.onnx").read_bytes()
    # One more graph field, which parsers join with the first: a node whose operator is Loop and then Mul.
    node = b"\x22\x04Loop" + b"\x22\x03Mul"
    inside = bytes([0x0A, len(node)]) + node
    (package / "model.onnx").write_bytes(data + bytes([0x3A, len(inside)]) + inside)
    assert onnx.load(package / "model.onnx", load_external_data=False).graph.node[-1].op_type == "Mul"
    sign(package)
    refused(package, "Loop")


@pytest.mark.parametrize("field", [(7, 1, 4), (7, 1, 7), (7, 5, 13), (7, 5, 13, 1)], ids=str)
def test_a_number_where_a_text_must_be_is_refused(package: Path, field: tuple[int, ...]) -> None:
    """Bytes of a number would be as many zeros: here eight exabytes of them."""
    message = bytes([field[-1] << 3]) + b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"
    for number in reversed(field[:-1]):
        message = bytes([number << 3 | 2, len(message)]) + message
    with (package / "model.onnx").open("ab") as graph:  # a message goes on where the next one begins
        graph.write(message)
    sign(package)
    refused(package, "a number where a text or a message must be")
