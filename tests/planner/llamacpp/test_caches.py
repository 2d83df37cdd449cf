"""KV caches of llama.cpp: what the library allocates for each type, what each loses, and packages that carry one."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from planner.answers import from_proof
from planner.costs import Costs
from planner.package import Package, write_package
from planner.request import Workload
from planner.rows import BROKEN
from planner.runtimes.llamacpp import fresh, memory, random_gguf
from planner.runtimes.llamacpp.installed import library
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.llamacpp.serving import CACHES, WEIGHTS, Serving
from planner.runtimes.shapes import Shape
from planner.testing.supernets import RoundedSupernet
from records.errors import InputError
from supernet.keys_values import kept_keys_values
from supernet.space import Choice, Subnet
from tests.planner.llamacpp.models import made, mixed
from tests.planner.packages import DEVICE, tiny_plan

pytest.importorskip("xllamacpp", reason="runs the pinned build of llama.cpp; pip install 'bitfleet[llamacpp]'")

SHAPES = (Shape("heads of 64", 3, 256, 512, 4, 2, 64, 512), Shape("heads of 32", 2, 128, 256, 4, 4, 32, 512))
ODD = Shape("heads of 48", 2, 192, 256, 4, 2, 48, 512)
NAMES = [cache.name for cache in CACHES]
# Prints what the library logs of a cache: the bytes of each buffer that it allocates, in MiB with two digits.
COUNTED = """
import sys
from pathlib import Path
from planner.runtimes.llamacpp import capi
_, file, path, kind, context, batch = sys.argv
loaded = capi.Library(path)
heard = capi._Log(lambda level, text, _: print(text.decode().strip(), flush=True))
model = capi.Model(loaded, Path(file))
loaded.call("llama_log_set", heard, None)
capi.Context(model, int(context), 1, kind, 128, batch=int(batch))
"""


def package(folder: Path, shape: Shape, kind: str, context: int = 512) -> Path:
    chosen = Subnet.of({unit.name: Choice(8, 32, "sym") for unit in shape.spec().units})
    return random_gguf.write(shape, chosen, context, 1, folder, kv_type=kind)


@pytest.mark.parametrize(("context", "batch"), [(8192, 1), (5000, 1), (2048, 3)])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_library_allocates_what_was_predicted(
    tmp_path: Path, shape: Shape, kind: str, context: int, batch: int
) -> None:
    file = package(tmp_path / "package", shape, kind) / WEIGHTS
    command = [sys.executable, "-c", COUNTED, file, library(), kind, str(context), str(batch)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sizes = re.findall(r"KV buffer size\s*=\s*([\d.]+) MiB", said)
    cache = next(one for one in CACHES if one.name == kind)
    predicted = memory.kv_bytes(shape.spec(), context, batch, cache)
    assert sizes and abs(sum(map(float, sizes)) - predicted / 2**20) < 0.0051


@pytest.mark.parametrize("kind", NAMES)
def test_heads_that_no_block_divides_do_not_load_and_are_refused_before(tmp_path: Path, kind: str) -> None:
    """48 values are no blocks of 32: the library says so, and so does a plan."""
    folder, runtime = package(tmp_path / "package", ODD, kind), LlamaCpp()
    windows = np.ones((1, 8), np.int64)
    refusal = runtime.holding(ODD.spec()).cache_refusal(runtime.cache(Workload(256, kv_cache=kind)))
    if kind == "f16":
        assert refusal is None and np.isfinite(fresh.logits(folder, windows)).all()
    else:
        assert refusal is not None
        with pytest.raises(InputError, match="block size"):
            fresh.logits(folder, windows)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """Of one subnet, with heads of 32, for each type."""
    folder = tmp_path_factory.mktemp("packages")
    files, runtime = made("llama", folder / "model", head_dim=32), LlamaCpp()
    subnet, found = mixed(files.spec, "sym8g32"), {}
    for kind in NAMES:
        workload = Workload(192, 1, 32, kind)
        costs = Costs.of(runtime, files.spec, workload, DEVICE, files.model_dir)
        plan = replace(
            tiny_plan(files, Workload(192, 1, 32), mixed(files.spec, "int4g32")), runtime=runtime.name,
            workload=workload, compared=(costs.compared("planned", "test", subnet, 0.1),),
            memory=costs.memory(subnet), latency=costs.latency(subnet),
        )  # fmt: skip
        found[kind] = write_package(runtime, files, plan, folder / kind)
    return found


def test_a_package_carries_its_type_and_answers_with_it(packages: dict[str, Package]) -> None:
    runtime, losses = LlamaCpp(), {}
    for kind, one in packages.items():
        one.check(runtime)
        assert Serving.load(one.path).kv_type == one.plan.workload.kv_cache == kind
        rows = {row.name: row for row in from_proof(runtime, one)}
        assert rows["KL to the supernet"].holds  # with floats, whatever the type
        losses[kind] = rows["KL to the supernet" if kind == "f16" else f"KL to the supernet, {kind} cache"].measured
    assert losses["f16"] < losses["q8_0"] < losses["q4_0"]
    assert len({one.files[WEIGHTS] for one in packages.values()}) == 1  # the weights are the same bytes


def test_what_torch_computes_of_the_rounding_is_what_the_library_does(packages: dict[str, Package]) -> None:
    """Beside what else the library rounds: the activations, and the query that a rounded key is multiplied with."""
    one, windows = packages["q4_0"], np.random.default_rng(0).integers(3, 200, (2, 100))
    theirs = fresh.logits(one.path, windows) - fresh.logits(one.path, windows, unrounded=True)
    model = RoundedSupernet(one.path.parent / "model").subnet_model(one.plan.subnet)
    keep = LlamaCpp().kept(LlamaCpp().cache(one.plan.workload), SHAPES[1].spec(), model, ())
    with torch.no_grad():
        plain = model(torch.from_numpy(windows)).logits
        with kept_keys_values(model, keep):
            ours = (model(torch.from_numpy(windows)).logits - plain).numpy()
    assert 0.8 < np.square(ours).mean() / np.square(theirs).mean() < 1.25
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.6


def test_a_package_that_would_keep_another_type_is_refused(packages: dict[str, Package]) -> None:
    """It would take other memory than was promised."""
    one = packages["q4_0"]
    other = replace(one, plan=replace(one.plan, workload=Workload(192, 1, 32)))
    with pytest.raises(InputError, match="keeps keys and values as q4_0, the plan as f16"):
        other.check(LlamaCpp())
    assert [row for row in from_proof(LlamaCpp(), one) if row.verdict == BROKEN] == []
