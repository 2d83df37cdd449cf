"""One training, several runtimes, through the command line: planned for the best, exported for all, compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from records.errors import InputError
from tests.planner.runtime_fixtures import save_tiny

pytest.importorskip("xllamacpp", reason="runs the pinned build of llama.cpp; pip install 'bitfleet[llamacpp]'")

DATA = str(Path(__file__).resolve().parent.parent / "LICENSE")
DEVICE, MAC, GPU, PC = "laptop-i5-1240p-8gb", "macbook-air-m2-8gb", "rtx-4090-24gb", "desktop-ryzen-7950x-64gb"


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from supernet.create import create
    from supernet.recipe import Recipe

    folder = tmp_path_factory.mktemp("net")
    save_tiny("llama", folder / "tiny")
    recipe = Recipe((3, 4, 8), group_size=32, grid="sym", quantizer="rtn", steps=1, data=DATA)
    create(str(folder / "tiny"), folder / "net", recipe)
    return folder / "net"


def plan(bitfleet: Any, supernet: Path, out: Path, *more: object) -> Any:
    asked = ("--context", 128, "--prompt-tokens", 64, "--trials", 5, "--out", out, "--json", *more)
    done = bitfleet("plan", supernet, "--mem", "3GB", *asked)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_each_kind_of_device_has_its_runtimes(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    for device, runtimes in (
        (DEVICE, {"onnxruntime", "llamacpp"}),
        (MAC, {"onnxruntime", "llamacpp", "mlx"}),
        (GPU, {"llamacpp", "vllm"}),
    ):
        made = plan(bitfleet, supernet, tmp_path / "plan.json", "--device", device)
        others = {other["runtime"]: other for other in made["others"]}
        assert {made["runtime"], *others} == runtimes
        assert all(other["refused"] or other["memory_bytes"] > 0 for other in others.values())


def test_one_subnet_is_exported_for_all_and_compared(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    disk = plan(bitfleet, supernet, file, "--device", DEVICE, "--runtime", "llamacpp")["compared"][0]["disk_bytes"]
    small = plan(bitfleet, supernet, file, "--device", DEVICE, "--runtime", "onnxruntime", "--disk", f"{disk - 1}B")
    assert small["compared"][0]["mean_bits"] < 8
    done = bitfleet("export", file, "--out", tmp_path / "out", "--runtime", "all")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["llamacpp", "onnxruntime"]
    assert "vllm runs on cuda, not on cpu" in done.err and "MLX runs on Apple silicon" in done.err
    first, second = tmp_path / "out" / "onnxruntime", tmp_path / "out" / "llamacpp"
    assert done.out.splitlines()[-1] == f"next: bitfleet verify {first} --beside {second}"
    assert (
        json.loads((second / "manifest.json").read_text())["plan"]["compared"][0]["subnet"]
        == small["compared"][0]["subnet"]
    )
    found = bitfleet("verify", first, "--beside", second, "--json")
    rows = {row["name"]: row for row in json.loads(found.out)["rows"]}
    assert 0 <= rows["KL to llamacpp"]["measured"] < 0.01, rows["KL to llamacpp"]
    _measures_as_its_subnet(bitfleet, supernet, (first, second))


def _measures_as_its_subnet(bitfleet: Any, supernet: Path, packages: tuple[Path, ...]) -> None:
    """Every statistic over the second half of windows, of what the runtime makes of them and of what torch does."""
    text = ("--text", DATA, "--windows", 2, "--window-tokens", 64, "--second-half")
    for folder in packages:
        done = bitfleet("evaluate", supernet, "--package", folder, *text, "--json")
        packaged, subnet = json.loads(done.out)
        assert (packaged["subnet"], subnet["subnet"]) == (f"{folder.name} in {folder.name}", "its subnet")
        (found,), (wanted,) = packaged["texts"].values(), subnet["texts"].values()
        assert found["tokens"] == wanted["tokens"] == 2 * 31
        for name in ("kl", "perplexity", "kl_interval"):
            assert found[name] == pytest.approx(wanted[name], rel=0.05, abs=2e-3), name
        for name, value in wanted["statistics"].items():
            if isinstance(value, float):
                assert found["statistics"][name] == pytest.approx(value, rel=0.05, abs=2e-3), name
    refused = bitfleet("evaluate", supernet, "--package", packages[0])
    assert refused.code == 2 and "must fit the package's context of 128 tokens" in refused.error
    other = supernet.parent / "other"
    _copied(supernet, other)
    assert "was made from another one" in bitfleet("evaluate", other, "--package", packages[0]).error


def _copied(supernet: Path, other: Path) -> None:
    """The same supernet but for a file that its fingerprint is of."""
    shutil.copytree(supernet, other)
    index = json.loads((other / "supernet.json").read_text())
    name = next(iter(index["hashes"]))
    index["hashes"][name] = "0" * 64
    (other / "supernet.json").write_text(json.dumps(index))


def test_a_folder_for_a_mac_is_written_and_nothing_of_it_is_run(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    plan(bitfleet, supernet, file, "--device", MAC, "--runtime", "mlx")
    assert bitfleet("export", file, "--out", out).code == 0
    found = bitfleet("verify", out)
    assert found.code == 1 and "incomplete: peak memory, time per token, KL to the supernet" in found.out
    assert bitfleet("verify", out, "--allow-unchecked").code == 0
    assert "start it with: mlx_lm.chat" in bitfleet("run", out, "hi").error


def test_a_type_of_kv_cache_is_asked_for_by_name(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    """The runtime that has it is taken, the others say what they have; nobody's is refused before any work."""
    file = tmp_path / "plan.json"
    made = plan(bitfleet, supernet, file, "--device", DEVICE, "--kv-cache", "int8")
    assert made["runtime"] == "onnxruntime" and made["workload"]["kv_cache"] == "int8"
    assert (
        made["kv_cache"] == {"type": "int8", "bits": 8.0, "kl": made["kv_cache"]["kl"]} and made["kv_cache"]["kl"] > 0
    )
    kept = json.loads((supernet / "evaluations.json").read_text())
    (found,) = (of for key, of in kept.items() if key.endswith("/onnxruntime/int8"))
    assert [one["kl"] for one in found.values()] == [made["kv_cache"]["kl"]]
    left = plan(bitfleet, supernet, file, "--device", DEVICE, "--kv-cache", "auto")  # with room for floats
    assert left["workload"]["kv_cache"] is None and left["kv_cache"]["kl"] == 0
    assert made["others"][0]["refused"] == (
        "llamacpp keeps a KV cache as f16, q8_0, q4_0, got 'int8'; give one of them to --kv-cache"
    )
    asked = ("plan", supernet, "--mem", "3GB", "--context", 128, "--out", file, "--device", DEVICE)
    done = bitfleet(*asked, "--kv-cache", "q8_0", "--runtime", "llamacpp")
    assert done.code == 2 and "heads of 16 values must be a multiple of the 32 of a block; use f16" in done.error
    done = bitfleet(*asked, "--kv-cache", "q9")
    assert done.code == 2 and "got 'q9': onnxruntime keeps f32, int8; llamacpp keeps f16, q8_0, q4_0" in done.error


def test_layers_of_a_gpu_are_in_the_package_and_nothing_is_measured_of_it(
    bitfleet: Any, supernet: Path, tmp_path: Path
) -> None:
    """The plan names the machine that has the others; every file says how many the GPU has, and they must agree."""
    from planner.package import open_package
    from planner.runtimes.llamacpp import safety

    file, out = tmp_path / "plan.json", tmp_path / "out"
    placed = ("--device", GPU, "--host", PC, "--host-mem", "4GB", "--runtime", "llamacpp", "--gpu-layers", 2)
    made = plan(bitfleet, supernet, file, *placed)
    assert made["placement"] == {"gpu_layers": 2, "layers": 3} and made["device"]["host"] == PC
    assert made["limits"]["host_memory_bytes"] == 4 * 10**9 and made["compared"][0]["host_bytes"] > 250_000_000
    done = bitfleet("export", file, "--out", out)
    assert done.code == 0, done.err
    said = json.loads((out / "manifest.json").read_text())
    assert said["launch"] == "llama-cli -m model.gguf -cnv --jinja --temp 0 -fa on -c 128 -ngl 2"
    assert "PARAMETER num_gpu 2" in (out / "Modelfile").read_text().splitlines()
    sizes = {name: entry.bytes for name, entry in open_package(out).files.items()}
    with pytest.raises(InputError, match="puts 2 layers on a GPU, the plan 3"):
        safety.check(out, sizes, 128, gpu_layers=3)
    found = bitfleet("verify", out)
    assert (
        found.code == 1
        and "incomplete: peak memory, peak host memory, time per token could not be checked, all else holds"
        in found.out
    )
    assert "bitfleet runs llamacpp here, but not as its devices do: llama-cli" in found.out


@pytest.mark.parametrize(
    ("placed", "why"),
    [
        (("--host", DEVICE), "name the GPU with --device"),
        (("--device", DEVICE, "--host", DEVICE), f"{DEVICE} is a cpu"),
        (("--device", GPU, "--host", GPU), f"{GPU} is cuda"),
        (("--device", GPU, "--host-mem", "4GB"), "name that with --host"),
        (("--device", GPU, "--gpu-layers", 2, "--runtime", "llamacpp"), "name the others' --host"),
        (("--device", DEVICE, "--gpu-layers", 2, "--runtime", "llamacpp"), "leaves no layers elsewhere"),
    ],
)
def test_a_placement_that_means_nothing_is_refused(
    bitfleet: Any, supernet: Path, tmp_path: Path, placed: tuple[object, ...], why: str
) -> None:
    done = bitfleet("plan", supernet, "--mem", "3GB", "--context", 128, "--out", tmp_path / "plan.json", *placed)
    assert done.code == 2 and why in done.error
