"""What is timed on a GPU, timed on this machine's processor: the same code, but for graphs and events."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from profiles.device import DeviceProfile
from profiles.gpu_times import Sizes, compile_ahead, products, refusal, timed
from profiles.gpu_ways import WAYS, Float, Humming, Marlin, TinyGemm, Way
from profiles.kernels import MEASURED

torch = pytest.importorskip("torch")

TINY = Sizes(((128, 64), (256, 128)), (1, 16), seconds=60.0, repeats=3, side=64, cached=((2, 64),), cache_bytes=1 << 16)
PROFILE = DeviceProfile("gpu", "cuda", "NVIDIA", "a GPU", 2**33, True, "a test", "2026-11-29")


def silent(what: str, share: float) -> None: ...


class Broken(Float):
    name = "broken"

    def product(self, *_: Any) -> Any:
        raise RuntimeError("no kernel image\nfor this GPU")


class Compiled(TinyGemm):
    name, compiles = "compiled", True


def test_every_way_that_is_installed_is_timed_at_every_size() -> None:
    entries, reasons = products("cpu", TINY, silent)
    timed_ways = [way for way in WAYS if way.name not in reasons]
    assert {Float.name, TinyGemm.name} <= {way.name for way in timed_ways}
    sizes = {(e.kernel, e.bits, e.rows, e.in_features, e.out_features) for e in entries}
    assert sizes == {
        (w.name, b, r, k, n) for w in timed_ways for b in w.bits for r in TINY.rows for k, n in TINY.shapes
    }
    assert {e.group_size for e in entries if e.kernel == TinyGemm.name} == {32}


@pytest.mark.parametrize("way", [Marlin(), Humming()])
def test_what_runs_on_gpus_alone_says_so(way: Way) -> None:
    reason = way.refusal("cpu")
    assert reason is not None
    assert "not installed" in reason or "NVIDIA" in reason


def test_the_products_are_those_of_their_weights() -> None:
    """All codes of this weight are 9, one above its zero, with a scale of 1."""
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    aten = torch.ops.aten
    packed = aten._convert_weight_to_int4pack_for_cpu(torch.full((32, 64), 9, dtype=torch.int32), 1)
    sides = torch.stack([torch.ones(1, 32), torch.zeros(1, 32)], -1).bfloat16()
    found = aten._weight_int4pack_mm_for_cpu(x, packed, 64, sides)
    assert torch.allclose(found.float(), x.float().sum(1, keepdim=True).expand(3, 32), atol=0.1)
    for way in (Float(), TinyGemm()):
        assert way.product(way.bits[0], 64, 64, 32, "cpu")(x).shape == (3, 32)


def test_a_way_that_fails_says_why_in_a_line_and_the_others_are_timed() -> None:
    saved: list[int] = []
    entries, reasons = products("cpu", TINY, silent, (Broken(), Float()), lambda so_far: saved.append(len(so_far)))
    assert {e.kernel for e in entries} == {"bfloat16"}
    assert reasons == {"broken": "16 bits, 128 x 64: RuntimeError: no kernel image for this GPU"}
    assert saved == sorted(saved)
    assert saved[-1] == len(entries) == 4


def test_time_that_is_up_is_said() -> None:
    entries, reasons = products("cpu", Sizes(TINY.shapes, TINY.rows, seconds=0.0), silent, (Float(),))
    assert (entries, reasons) == ([], {"time": "2 of 2 products were left for want of time"})


def test_kernels_are_compiled_in_other_processes() -> None:
    way = Compiled()
    assert compile_ahead([((128, 64), way, 4), ((100, 64), way, 4)], "cpu", (1,), 300.0) == 1  # 100 is no whole group
    assert compile_ahead([((128, 64), way, 4)], "cpu", (1,), 0.0) == 0


def test_a_profile_has_what_was_timed() -> None:
    found, reasons = timed(PROFILE, "cpu", TINY, silent)
    assert DeviceProfile.from_json(found.to_json()) == found
    once = found.kernels.estimate("torch", 4, 32, 16, 256, 128, kernel="tinygemm")
    assert once is not None
    assert once.basis == MEASURED
    assert found.bf16_ops_per_s is not None
    assert {one.name for one in found.calibrations} == {"graph_kernel_ms", "launch_ms", "attention_bytes_per_s_2x64"}
    assert all(one.value > 0 for one in found.calibrations)
    assert "time" not in reasons


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_torch_that_sees_no_gpu_says_so() -> None:
    assert "does not see cuda:0" in str(refusal("cuda:0"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_is_timed() -> None:
    entries, _ = products("cuda:0", Sizes(((1024, 1024),), (1, 16), seconds=60.0), silent, (Float(), TinyGemm()))
    assert len(entries) == 4


def test_nothing_but_what_is_asked_for_is_imported() -> None:

    code = "import sys, profiles.gpu_times, profiles.gpu_ways; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
