"""Every reader that meets a file of somebody else's, with a seed to mutate and what commands do with what was read."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from commands.evaluate import chosen_subnets
from commands.reports import print_device, print_differences, print_plan
from planner import pipeline
from planner.card import card
from planner.costs import Costs
from planner.delta import DELTA, apply_delta, signature, write_delta
from planner.differences import differences
from planner.fleet.compare import compared
from planner.fleet.fleetfile import EXAMPLE, read_fleet
from planner.fleet.index import Amount, Device, Index, Listed, Loss, Served, slots_of
from planner.fleet.page import page
from planner.fleet.receipts import Receipt, accept, open_slots
from planner.frame import loadable
from planner.package import Entry, open_package
from planner.plan import Margin, Plan, Tuned
from planner.proof import Proof
from planner.quality import EVALUATIONS_FILE, Measured, MeasuredQuality
from planner.request import Budget, Workload
from planner.rows import Row
from planner.runtimes.onnxruntime import random_package, safety
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import Shape
from planner.runtimes.vllm.runtime import Vllm
from profiles.anchor import Figure, anchored, build_of, figures
from profiles.catalog import load as catalogued
from profiles.device import DeviceProfile
from profiles.kernels import KernelEntry, KernelTable
from profiles.shares import group_of
from records.atomic import sha256
from records.errors import BudgetError
from records.reading import read_value
from supernet.checkpoint import LOAD, SUPERNET, SupernetFiles, open_supernet, save_index
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet

SHAPE = Shape("tiny", 2, 64, 128, 4, 2, 16, 320)
RUNTIME = OnnxRuntime()
DEVICE = "laptop-i5-1240p-8gb"
WORKLOAD = Workload(128, 1, 32)


@dataclass(frozen=True)
class Reader:
    """`seed(folder)` writes what the reader needs and returns the bytes of `file`, which are mutated; `use` reads."""

    name: str
    file: str
    seed: Callable[[Path], bytes]
    use: Callable[[Path], Any]
    json: bool = True


@contextlib.contextmanager
def quiet() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- seeds --------------------------------------------------------------------------------------------------------


def supernet(folder: Path, grid: str = "int") -> SupernetFiles:
    """A supernet's JSON, without weights: planning needs no more."""
    spec = SHAPE.spec()
    bits = {unit.name: (8,) if unit.is_table else (2, 4, 8) for unit in spec.units}
    space = SearchSpace.of({unit: tuple(Choice(b, 32, grid) for b in widths) for unit, widths in bits.items()})
    recipe = {"bits": [2, 4, 8], "group_size": 32, "window_tokens": 64}
    texts = {"held-out": {"text": "tiny", "windows": 2, "tokens": 128, "first": 0, "digest": "d1"}}
    info = {"source": "tiny", "recipe": recipe, "adapter": {"name": "scales", "deploys": "scales", "options": {}},
            "finished": True, "steps": 2, "trial": {}, "texts": texts}  # fmt: skip
    (folder / LOAD).write_text("{}")
    files = save_index(folder, spec, space, info, {LOAD: sha256(folder / LOAD)})
    units = {unit: {str(c): 2.0**-c.bits for c in choices} for unit, choices in space}
    SensitivityTable("8 bits", units, supernet=files.fingerprint, date="2026-11-28").save(folder / SENSITIVITY_FILE)
    return files


@cache
def plan_json() -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        made = pipeline.plan_any(
            supernet(Path(scratch)), (RUNTIME,), catalogued(DEVICE), WORKLOAD, Budget(10**9, tpot_ms=50.0, max_kl=9.0),
            trials=0, command="fuzz", drawn=True,
        )  # fmt: skip
        made = replace(made, margins=(Margin("kv-cache", "f32", "int8", -9_000, 0.002, -0.01, 0.1, 2.0),))
    return json.loads(json.dumps(made.to_json()))  # type: ignore[no-any-return]


def plan(folder: Path) -> bytes:
    supernet(folder)
    return json.dumps(plan_json()).encode()


@cache
def gpu_plan_json() -> dict[str, Any]:
    """Divided over two GPUs, with scales of its own, and what a plan with a host says besides."""
    import tempfile

    workload, device = Workload(128, 2, 32, kv_cache="fp8", gpus=2), catalogued("l4-24gb")
    with tempfile.TemporaryDirectory() as scratch:
        made = pipeline.plan_any(
            supernet(Path(scratch), "sym"), (Vllm(),), device, workload, Budget(device.memory_bytes), trials=0,
            command="fuzz", drawn=True,
        )  # fmt: skip
    quality: Measured = {"kl": 0.2, "texts": {"held-out": {"kl": 0.2, "perplexity": 9.0, "top1": 0.9, "tokens": 64}}}
    made = replace(
        made, tuned=Tuned("a" * 64, 8, 0, "tiny", 3, 9, quality), placement={"gpu_layers": 1, "layers": 3},
        compared=tuple(replace(one, host_bytes=9) for one in made.compared),
        budget=replace(made.budget, host_memory_bytes=99), margins=(Margin("gpu-layers", "1", "2", 5, 0.0, 0.1, -1.0),),
    )  # fmt: skip
    return json.loads(json.dumps(made.to_json()))  # type: ignore[no-any-return]


def gpu_plan(folder: Path) -> bytes:
    supernet(folder, "sym")
    return json.dumps(gpu_plan_json()).encode()


def device(folder: Path) -> bytes:
    entries = tuple(
        KernelEntry("onnxruntime", bits, 32, rows, k, n, 4, 0.1, 0.09, 0.12, 10)
        for bits in (4, 8) for rows in (1, 16) for k, n in ((64, 64), (64, 128), (128, 64))
    )  # fmt: skip
    known = catalogued(DEVICE)
    replace(known, kernels=KernelTable(entries, "2026-11-28", {"onnxruntime": "1"})).save(folder / "device.json")
    supernet(folder)
    return (folder / "device.json").read_bytes()


def gpu_device(folder: Path) -> bytes:
    """A GPU in a host: products that were timed for vLLM, numbers of llama.cpp's own figures."""
    entries = tuple(
        KernelEntry("vllm", bits, group, rows, k, n, 1, 0.1, 0.09, 0.12, 10, kernel)
        for bits, group, kernel in ((4, 32, "marlin"), (8, 64, "humming"))
        for rows in (1, 16) for k, n in ((64, 64), (64, 128), (128, 64))
    )  # fmt: skip
    table = KernelTable(entries, "2026-11-28", {"vllm": "0.20"})
    known = anchored(hosted_gpu(), [Figure("cuda", group_of("Q4_K_M"), 5 * 10**9, 32, 90.0)], "")
    replace(known, kernels=table).save(folder / "device.json")
    supernet(folder, "sym")
    return (folder / "device.json").read_bytes()


def hosted_gpu() -> DeviceProfile:
    return replace(catalogued("l4-24gb"), host=catalogued(DEVICE))


def llama_bench(folder: Path) -> bytes:
    row = {"build_number": 1, "build_commit": "a", "backends": "CUDA", "model_type": "llama 8B Q4_K - Medium",
           "model_size": 4_900_000_000, "model_n_params": 8_030_000_000, "n_gpu_layers": 99, "n_gen": 128,
           "n_prompt": 0, "n_depth": 0, "avg_ts": 46.2}  # fmt: skip
    rows = [row, {**row, "model_type": "llama 8B Q8_0", "model_size": 8_500_000_000, "avg_ts": 30.0}]
    return json.dumps(rows).encode()


def index(folder: Path) -> bytes:
    supernet(folder)
    return (folder / SUPERNET).read_bytes()


def sensitivities(folder: Path) -> bytes:
    supernet(folder)
    return (folder / SENSITIVITY_FILE).read_bytes()


def evaluations(folder: Path) -> bytes:
    files = supernet(folder)
    subnet = files.space.uniform(files.spec, 4)
    measured_quality(folder, files)([subnet])
    return (folder / EVALUATIONS_FILE).read_bytes()


def measured_quality(folder: Path, files: SupernetFiles) -> MeasuredQuality:
    quality = {"kl": 0.1, "perplexity": 9.0, "top1": 0.9, "tokens": 64, "kl_interval": 0.01, "full_perplexity": 8.0}
    return MeasuredQuality(
        folder / EVALUATIONS_FILE, files.fingerprint, {"prose": "d1", "code": "d2"},
        lambda subnets, texts: [dict.fromkeys(texts, quality) for _ in subnets],
    )  # fmt: skip


def subnet(folder: Path) -> bytes:
    files = supernet(folder)
    return json.dumps(files.space.uniform(files.spec, 4).to_json()).encode()


def package(folder: Path) -> bytes:
    """A package of random codes with a manifest; the bytes of the manifest."""
    made = random_package_of(SHAPE, Subnet.of({u.name: Choice(8, 32) for u in SHAPE.spec().units}), folder / "p")
    return (made / "manifest.json").read_bytes()


def random_package_of(shape: Shape, subnet: Subnet, folder: Path) -> Path:
    made = random_package.write(shape, subnet, 128, 1, folder)
    (made / "tokenizer.json").write_text("{}")
    files = {p.name: {"sha256": sha256(p), "bytes": p.stat().st_size} for p in sorted(made.iterdir())}
    manifest = {"kind": "bitfleet package", "schema": 1, "launch": "", "date": "2026-11-28", "versions": {},
                "files": files, "plan": plan_json()}  # fmt: skip
    (made / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return made


def delta(folder: Path) -> bytes:
    """Two packages that differ in a layer, and the delta between them; the bytes of its index."""
    package(folder)
    bits = {u.name: Choice(4 if ".1." in u.name else 8, 32) for u in SHAPE.spec().units}
    random_package_of(SHAPE, Subnet.of(bits), folder / "q")
    write_delta(RUNTIME, open_package(folder / "p"), open_package(folder / "q"), folder / "d")
    return (folder / "d" / DELTA).read_bytes()


def settings(folder: Path) -> bytes:
    package(folder)
    return (folder / "p" / safety.CONFIG).read_bytes()


def graph(folder: Path) -> bytes:
    package(folder)
    return (folder / "p" / safety.GRAPH).read_bytes()


def text(folder: Path) -> bytes:
    return ("It was the best of times, it was the worst of times; \u00e4\u00f6\u00fc \u65e5\u672c\n" * 20).encode()


def records(folder: Path) -> bytes:
    rows: list[Any] = [{"text": "one text"}, {"instruction": "add", "input": "1 2", "output": "3"}]
    rows += [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows * 4)


def gguf(folder: Path) -> bytes:
    import gguf as library
    import numpy as np

    writer = library.GGUFWriter(str(folder / "m.gguf"), "llama")
    for name, value in {"block_count": 1, "context_length": 64, "embedding_length": 32}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "</s>", "a", "b"])
    writer.add_array("tokenizer.ggml.token_type", [3, 3, 1, 1])
    for name in ("token_embd.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "m.gguf").read_bytes()


def proof(folder: Path) -> bytes:
    import numpy as np

    from supernet.said import Continuation, Said

    said = Said(
        np.arange(16, dtype=np.int32).reshape(4, 4), np.full((4, 4), -2, np.float32), np.full(4, 0.4, np.float32)
    )
    text = Continuation(np.ones((1, 4), np.int32), np.ones((1, 4), np.float32))
    windows, positions = (np.ones(8, np.int32), np.ones(8, np.int32)), np.arange(4, dtype=np.int32)
    prompts = np.ones((1, 3), np.int32)
    Proof(windows, positions, said, said, said, prompts, text, text, 8).save(folder / "proof.safetensors")
    return (folder / "proof.safetensors").read_bytes()


def fleet_file(folder: Path) -> bytes:
    return EXAMPLE.encode()


def exported() -> Index:
    """One package for one device, and a device that none serves."""
    device, budget = Device.of(catalogued(DEVICE)), Budget(10**9, 20.0)
    loss = Loss(0.1, True, 0.01, {"prose": {"kl": 0.1, "kl_interval": 0.01, "windows": 2, "tokens": 128}})
    files = {"model.onnx": Entry("1" * 64, 10)}
    package = Listed(
        "tiny-4.0bits-128-00000000", "onnxruntime", WORKLOAD, "0" * 64, 10, files, 4.0, 10, "qkv 44\nhead 8",
        (Amount("linears", 10),), loss, ("a",),
    )  # fmt: skip
    served = Served(
        "a", device, "onnxruntime", budget, WORKLOAD, package.name, "", 10, "estimate", 1.0, 9.0, "modelled", 10,
        {"memory": 0.05, "tpot": 0.2}, loss, loss,
    )  # fmt: skip
    refused = Served("b", device, "onnxruntime", budget, WORKLOAD, None, "too little")
    slots = slots_of(package, served)
    return Index("2026-12-01T00:00:00+00:00", "f" * 64, {"name": "tiny"}, 0.05, True, 0.0, {"onnxruntime": "1"},
                 (package,), (served, refused), slots)  # fmt: skip


def exported_gpus() -> Index:
    """The same for a GPU with layers on its host, and one of two GPUs."""
    one = exported()
    on_gpus = replace(WORKLOAD, gpus=2, gpu_layers=1)
    package = replace(one.packages[0], workload=on_gpus, host_memory=(Amount("linears", 4),))
    served = replace(
        one.devices[0], device=Device.of(hosted_gpu()), workload=on_gpus, host_memory_bytes=4, layers=2,
        budget=Budget(10**9, 20.0, host_memory_bytes=10**9),
    )  # fmt: skip
    return replace(one, packages=(package,), devices=(served, *one.devices[1:]), slots=slots_of(package, served))


def gpu_index(folder: Path) -> bytes:
    return json.dumps(exported_gpus().to_json()).encode()


def received() -> Receipt:
    rows = (Row("loads", "", 1.0, 1.0), Row("peak memory", "bytes", 10, 9), Row("time per token", "ms", 1.0, 1.1))
    return Receipt("tiny", "0" * 64, {"model.onnx": "1" * 64}, "a", Device.of(catalogued(DEVICE)), {"onnxruntime": "1"},
                   "2026-12-02T00:00:00+00:00", rows)  # fmt: skip


def fleet_index(folder: Path) -> bytes:
    return json.dumps(accept(exported(), [received()]).to_json()).encode()


def receipt(folder: Path) -> bytes:
    return received().text.encode()


# --- what commands do with them -----------------------------------------------------------------------------------


@cache
def opened(folder: Path) -> SupernetFiles:
    return open_supernet(folder)


def use_device(folder: Path) -> None:
    found = DeviceProfile.load(folder / "device.json")
    with quiet():
        print_device(found)
    spec = SHAPE.spec()
    costs = Costs.of(RUNTIME, spec, WORKLOAD, found, Path())
    costs.compared("planned", "fuzz", Subnet.of({unit.name: Choice(8, 32) for unit in spec.units}), 0.0)


def use_gpu_device(folder: Path) -> None:
    found = DeviceProfile.load(folder / "device.json")
    with quiet():
        print_device(found)
    with contextlib.suppress(BudgetError):
        pipeline.plan_any(
            opened(folder), (Vllm(),), found, WORKLOAD, Budget(found.memory_bytes), trials=0, command="fuzz"
        )


def use_llama_bench(folder: Path) -> None:
    rows = read_value(folder / "bench.json", "output of llama-bench", "write it again")
    found = anchored(catalogued("l4-24gb"), figures(rows, "bench.json"), build_of(rows))
    if DeviceProfile.from_json(json.loads(json.dumps(found.to_json()))) != found:
        raise AssertionError("an anchored profile does not round-trip")


def use_index(folder: Path) -> None:
    files = open_supernet(folder)
    workload = Workload.for_model(files.spec, None, 1, None)
    costs = Costs.of(RUNTIME, files.spec, workload, catalogued(DEVICE), files.model_dir)
    space, _ = loadable(files.space, files.spec, RUNTIME)
    costs.compared("uniform", "fuzz", space.uniform(costs.spec, space.bits(costs.spec)[0]), 0.0)


def use_sensitivities(folder: Path) -> None:
    files = opened(folder)
    table = SensitivityTable.load(folder / SENSITIVITY_FILE)
    table.check(files.space, files.fingerprint)
    table.predict(files.space.uniform(files.spec, 4))


def use_evaluations(folder: Path) -> None:
    files = opened(folder)
    measured_quality(folder, files)([files.space.uniform(files.spec, 4), files.space.uniform(files.spec, 2)])


def use_subnet(folder: Path) -> None:
    chosen_subnets(opened(folder), folder / "subnet.json", None)


def use_plan(folder: Path) -> None:
    made, files = Plan.load(folder / "plan.json"), opened(folder)
    made.check(files.space)
    with quiet():
        print_plan(made)
        for other in (made, Plan.from_json(plan_json())):
            print_differences(differences(made, other), ("a", "b"))
            print_differences(differences(other, made), ("b", "a"))
    card(made)
    if made.to_json() != Plan.from_json(made.to_json()).to_json():
        raise AssertionError("a plan that was read does not round-trip")


def use_package(folder: Path) -> None:
    open_package(folder / "p").check(RUNTIME)


def use_delta(folder: Path) -> None:
    """Signed anew, as a forger would: else the signature would be all that is tried. What is applied is exact."""
    index = folder / "d" / DELTA
    with contextlib.suppress(ValueError, RecursionError):
        data = json.loads(index.read_bytes())
        if isinstance(data, dict):
            index.write_text(json.dumps({**data, "sha256": signature(data)}))
    try:
        made = apply_delta(folder / "p", folder / "d", folder / "made")
        if made.files != open_package(folder / "q").files:
            raise AssertionError("a delta that was applied made another package")
    finally:
        left = [path.name for path in folder.iterdir() if path.name.startswith(".made")]
        shutil.rmtree(folder / "made", ignore_errors=True)
    if left:
        raise AssertionError(f"left behind: {left}")


def use_loaded(folder: Path) -> None:
    sizes = {p.name: p.stat().st_size for p in (folder / "p").iterdir() if p.suffix != ".part"}
    safety.check(folder / "p", sizes, context=128)


def use_proof(folder: Path) -> None:
    proof = Proof.load(folder / "proof.safetensors")
    proof.planned(slice(None))


def use_text(folder: Path) -> None:
    from supernet.text.reading import pieces

    for name in ("t.txt", "t.jsonl"):
        if (folder / name).exists():
            for _ in pieces(str(folder / name)):
                pass


def use_gguf(folder: Path) -> None:
    from supernet.sources.gguf_file import read_gguf

    for tensor in read_gguf(folder / "m.gguf").tensors.values():
        tensor.floats()


def use_fleet_file(folder: Path) -> None:
    read_fleet(folder / "fleet.toml")


def use_fleet_index(folder: Path) -> None:
    read = Index.load(folder / "index.json")
    compared(read, exported(), 0.02)
    page(read)
    if Index.from_json(json.loads(json.dumps(read.to_json()))) != read:
        raise AssertionError("an index that was read does not round-trip")


def use_receipt(folder: Path) -> None:
    filled = accept(exported(), [Receipt.load(folder / "receipt.json")])
    list(open_slots(filled))
    page(filled)


READERS = {
    reader.name: reader
    for reader in (
        Reader("device profile", "device.json", device, use_device),
        Reader("GPU profile", "device.json", gpu_device, use_gpu_device),
        Reader("llama-bench", "bench.json", llama_bench, use_llama_bench),
        Reader("plan", "plan.json", plan, use_plan),
        Reader("plan for GPUs", "plan.json", gpu_plan, use_plan),
        Reader("manifest", "p/manifest.json", package, use_package),
        Reader("delta", f"d/{DELTA}", delta, use_delta),
        Reader("genai settings", f"p/{safety.CONFIG}", settings, use_loaded),
        Reader("graph", f"p/{safety.GRAPH}", graph, use_loaded, json=False),
        Reader("proof", "proof.safetensors", proof, use_proof, json=False),
        Reader("supernet index", SUPERNET, index, use_index),
        Reader("sensitivities", SENSITIVITY_FILE, sensitivities, use_sensitivities),
        Reader("evaluations", EVALUATIONS_FILE, evaluations, use_evaluations),
        Reader("subnet", "subnet.json", subnet, use_subnet),
        Reader("fleet file", "fleet.toml", fleet_file, use_fleet_file, json=False),
        Reader("fleet index", "index.json", fleet_index, use_fleet_index),
        Reader("index of GPUs", "index.json", gpu_index, use_fleet_index),
        Reader("receipt", "receipt.json", receipt, use_receipt),
        Reader("text", "t.txt", text, use_text, json=False),
        Reader("JSON lines", "t.jsonl", records, use_text, json=False),
        Reader("GGUF", "m.gguf", gguf, use_gguf, json=False),
    )
}
