"""An index as an export of SmolLM2-135M for eight devices makes it: four packages, and one device that none serves."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from planner.fleet.index import Amount, Device, Index, Listed, Loss, Served, package_name, slots_of
from planner.package import Entry
from planner.quality import TextQuality
from planner.request import Budget, Workload
from profiles.catalog import load
from supernet.space import Choice, Subnet

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SUMMARY = {"name": MODEL, "architecture": "LlamaForCausalLM", "layers": 30, "units": 121, "linear_weights": 106_168_320,
           "max_context": 8192, "tied": True}  # fmt: skip
VERSIONS = {"bitfleet": "0.1.0", "onnxruntime": "1.31.0", "onnxruntime-genai": "0.18.0"}
BANDS = {"memory": 0.05, "tpot": 0.2, "ttft": 0.5}
LAYERS = 30
EMBEDDING, HEADS = 49152 * 576, 2 * 30 * 3 * 64


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def bits(mean: float, wide: int = 8) -> dict[str, str]:
    """Roles to digits, as plans come out: the first and last layers and what reads channels keep more."""
    low, high = {3: (2, 4), 4: (2, 4), 5: (4, 8), 8: (8, 8)}[round(mean)]
    digits = {}
    for number, role in enumerate(("qkv", "o", "gate_up", "down")):
        share = (mean - low) / max(high - low, 1)
        wider = {layer for layer in range(LAYERS) if (layer * 7 + number * 3) % 10 < 10 * share} | {0, LAYERS - 1}
        digits[role] = "".join(str(high if layer in wider else low) for layer in range(LAYERS))
    return {"embedding": str(wide), **digits}


def loss(kl: float) -> Loss:
    texts: dict[str, TextQuality] = {
        "held-out": {
            "kl": kl * 0.9,
            "kl_interval": 0.06 * kl,
            "top1": 1 - 0.9 * kl**0.5,
            "windows": 32,
            "tokens": 8192,
        },
        "python manual": {"kl": kl * 1.1, "kl_interval": 0.09 * kl, "windows": 24, "tokens": 6144},
    }
    return Loss(kl, True, None, texts)


def listed(mean: float, context: int, kl: float, devices: tuple[str, ...]) -> Listed:
    roles = bits(mean)
    subnet = Subnet.of(
        {f"{role}.{n}": Choice(int(b), 32) for role, digits in roles.items() for n, b in enumerate(digits)}
    )
    workload = Workload(context)
    name = package_name("SmolLM2-135M", mean, subnet, "onnxruntime", workload)
    linears, embedding = int(106_168_320 * (mean + 0.6) / 8), EMBEDDING + EMBEDDING // 16
    disk = linears + embedding + 211_200
    sizes = {"model.onnx.data": disk, "model.onnx": 271_443, "tokenizer.json": 2_104_556, "genai_config.json": 1_533,
             "proof.safetensors": 3_204_960, "chat_template.jinja": 640}  # fmt: skip
    files = {file: Entry(digest(name + file), size) for file, size in sizes.items()}
    memory = (
        Amount("linears", linears), Amount("runtime", 61_000_000), Amount("KV cache", context * HEADS * 4),
        Amount("embedding", embedding), Amount("activations", 18_400_000), Amount("tokenizer", 12_100_000),
        Amount("reserve", 9_000_000),
    )  # fmt: skip
    text = "\n".join(f"{role} {digits}" for role, digits in roles.items())
    return Listed(name, "onnxruntime", workload, digest(name), sum(sizes.values()), files, mean, disk, text,
                  tuple(sorted(memory, key=lambda one: -one.bytes)), loss(kl), devices)  # fmt: skip


def served(name: str, catalogued: str, budget: Budget, package: Listed, tpot_ms: float, best: float) -> Served:
    return Served(
        name, Device.of(load(catalogued)), package.runtime, budget, package.workload, package.name,
        memory_bytes=sum(one.bytes for one in package.memory), memory_basis="estimate", tpot_ms=tpot_ms,
        ttft_ms=11 * tpot_ms, latency_basis="estimate", disk_bytes=package.disk_bytes, bands=BANDS, loss=package.loss,
        best_loss=loss(best),
    )  # fmt: skip


def index() -> Index:
    small = listed(2.9, 2048, 0.412, ("raspberry-pi-5-8gb", "small-pi"))
    middle = listed(3.9, 2048, 0.121, ("kiosk", "steam-deck-16gb", "macbook-air-m2-8gb"))
    long = listed(3.9, 4096, 0.126, ("desk",))
    large = listed(8.0, 4096, 0.0021, ("graviton3-128gb",))
    devices = (
        served("raspberry-pi-5-8gb", "raspberry-pi-5-8gb", Budget(300_000_000, tpot_ms=50.0), small, 31.4, 0.405),
        served("small-pi", "raspberry-pi-5-8gb", Budget(310_000_000), small, 31.4, 0.412),
        served("kiosk", "laptop-i5-1240p-8gb", Budget(300_000_000, disk_bytes=150_000_000), middle, 6.2, 0.1162),
        served("steam-deck-16gb", "steam-deck-16gb", Budget(300_000_000), middle, 5.1, 0.1155),
        served("macbook-air-m2-8gb", "macbook-air-m2-8gb", Budget(310_000_000), middle, 3.4, 0.121),
        served("desk", "desktop-ryzen-5600-16gb", Budget(400_000_000, ttft_ms=500.0), long, 8.3, 0.126),
        served("graviton3-128gb", "graviton3-128gb", Budget(2_000_000_000), large, 2.6, 0.0021),
        Served(
            "watch", replace(Device.of(load("raspberry-pi-5-8gb")), name="watch", model="a watch"), "onnxruntime",
            Budget(100_000_000), Workload(512), None,
            "memory of 100 MB cannot be met, the smallest plan needs 168.3 MB of memory; use --mem 168.3MB",
        ),
    )  # fmt: skip
    packages = (small, middle, long, large)
    by_name = {package.name: package for package in packages}
    slots = tuple(
        slot for device in devices if device.package is not None for slot in slots_of(by_name[device.package], device)
    )
    return Index(
        "2026-12-01T09:30:00+00:00", digest("supernet"), SUMMARY, 0.05, True, 0.0, VERSIONS, packages, devices, slots
    )
