"""`bitfleet profile list --runtime`: which devices a runtime's packages can be planned for, and what runs there."""

from __future__ import annotations

import json
from typing import Any

import pytest


def listed(bitfleet: Any, runtime: str) -> dict[str, dict[str, Any]]:
    found = json.loads(bitfleet("profile", "list", "--runtime", runtime, "--json").out)
    return {entry["name"]: entry for entry in found}


def test_vllm_names_its_share_and_kernels_and_whom_it_refuses(bitfleet: Any) -> None:
    found = listed(bitfleet, "vllm")
    assert {entry["kind"] for entry in found.values()} == {"cuda"}
    assert [name for name, entry in found.items() if entry["refused"]] == ["v100-sxm-32gb"]
    assert "need compute capability 7.5, v100-sxm-32gb has 7.0" in found["v100-sxm-32gb"]["note"]
    assert found["h100-sxm-80gb"]["note"].startswith("takes 78.1 GB: Marlin for 4 bits")
    text = bitfleet("profile", "list", "--runtime", "vllm").out
    assert len(text.splitlines()) == 1 + len(found) and "NAME" in text.splitlines()[0]
    assert "not v100-sxm-32gb: vLLM's kernels of quantized weights need compute capability 7.5, it has 7.0" in text


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("rtx-5090-32gb", "by CUDA, a token give or take 20%"),
        ("arc-b580-12gb", "by Vulkan, a token give or take 17%"),
        ("mac-mini-m4-16gb", "on its GPU by Metal, a token give or take 22%"),
        ("epyc-9755-768gb", "on its processor, a token give or take 33%"),
        ("raspberry-pi-4-8gb", "no estimate: raspberry-pi-4-8gb has none of avx2"),
    ],
)
def test_llama_cpp_runs_on_all_of_them_by_what_each_has(bitfleet: Any, name: str, note: str) -> None:
    found = listed(bitfleet, "llamacpp")
    assert found[name]["note"].startswith(note) and not any(entry["refused"] for entry in found.values())
    assert len(found) == len(json.loads(bitfleet("profile", "list", "--json").out))


def test_onnx_runtime_runs_on_every_processor_of_it(bitfleet: Any) -> None:
    found = listed(bitfleet, "onnxruntime")
    assert {entry["note"] for entry in found.values()} == {"on its processor, by clock and bandwidth"}


def test_mlx_refuses_other_makers_in_a_line_for_each(bitfleet: Any) -> None:
    lines = bitfleet("profile", "list", "--runtime", "mlx").out.splitlines()
    refused = [line for line in lines if line.startswith("not ")]
    assert len(refused) == 5 and all("MLX runs on Apple silicon, it is by " in line for line in refused)
    assert bitfleet("profile", "list", "--runtime", "vlm").code == 2
