"""A tiny supernet that was really trained, and a fleet whose devices need different packages of it."""

from __future__ import annotations

from pathlib import Path

from planner.fleet.fleetfile import Fleet, Wanted
from planner.fleet.plan import FleetPlan, plan_fleet
from planner.request import Asked, Budget
from planner.runtimes import RUNTIMES
from planner.runtimes.base import Runtime
from profiles.catalog import load
from supernet.checkpoint import SupernetFiles
from supernet.create import create
from supernet.recipe import Recipe
from tests.planner.runtime_fixtures import save_tiny

LICENSE = Path(__file__).resolve().parents[3] / "LICENSE"
MEMORY = 200_000_000
PI, LAPTOP = "raspberry-pi-5-8gb", "laptop-i5-1240p-8gb"


def tiny_supernet(folder: Path) -> SupernetFiles:
    save_tiny("llama", folder / "model")
    recipe = Recipe((2, 4, 8), group_size=32, quantizer="rtn", steps=1, data=str(LICENSE))
    return create(str(folder / "model"), folder / "net", recipe)


def runtime_of(name: str) -> Runtime:
    return RUNTIMES[name]()


def wanted(name: str, device: str = LAPTOP, disk: int | None = None, memory: int = MEMORY) -> Wanted:
    return Wanted(
        name, device, load(device), Budget(memory, disk_bytes=disk), "onnxruntime", Asked(128, prompt_tokens=64)
    )


def planned(files: SupernetFiles, *devices: Wanted) -> FleetPlan:
    """By predictions: nothing is measured."""
    return plan_fleet(files, Fleet(None, 0.05, devices), runtime_of, trials=0)


FLEET = """\
max-loss = "5%"
[defaults]
runtime = "onnxruntime"
context = 128
prompt-tokens = 64
mem = "200MB"
[[device]]
name = "kiosk"
device = "raspberry-pi-5-8gb"
disk = "90KB"
[[device]]
name = "desk"
device = "desktop-ryzen-5600-16gb"
[[device]]
name = "office"
device = "laptop-i5-1240p-8gb"
"""
