"""Which device is taken and why others are not. NVML itself is stood in for where this machine has no GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from profiles.cpu import profile_cpu
from profiles.cuda import NoGPU, count_gpus, nvml, profile_cuda
from profiles.detect import Skipped, detect
from profiles.device import DeviceProfile
from tests.starting import standard_s


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    pass


class FakeNVML(ModuleType):
    """The part of pynvml that profiles.cuda uses, over `gpus` RTX 4060s; `fail` names a function that errs."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupported
    NVMLError_FunctionNotFound = type("NVMLError_FunctionNotFound", (NVMLError,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, gpus: int = 1, fail: str = "", unsupported: str = "") -> None:
        super().__init__("pynvml")
        self.gpus, self.fail, self.unsupported, self.open = gpus, fail, unsupported, 0

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetCount": self.gpus,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetName": b"NVIDIA GeForce RTX 4060",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=8585740288, free=8000000000, used=585740288),
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetMemoryBusWidth": 128,
            "nvmlDeviceGetNumGpuCores": 3072,
            "nvmlSystemGetDriverVersion": "590.10",
            "nvmlSystemGetCudaDriverVersion": 13020,
        }

        def call(*arguments: Any) -> Any:
            if name == self.fail:
                raise NVMLError("Unknown Error")
            if name == self.unsupported:
                raise NotSupported("Not Supported")
            self.open += (name == "nvmlInit") - (name == "nvmlShutdown")
            if name == "nvmlDeviceGetMaxClockInfo":
                return {self.NVML_CLOCK_SM: 2460, self.NVML_CLOCK_MEM: 8501}[arguments[1]]
            return answers[name]

        if name == "nvmlDeviceGetMaxClockInfo" or name in answers:
            return call
        raise AttributeError(name)


def fake(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeNVML:
    module = FakeNVML(**options)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def has_gpu() -> bool:
    try:
        return count_gpus() > 0
    except NoGPU:
        return False


@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA GPU")
def test_this_machine_without_a_gpu_says_why_and_goes_on() -> None:
    device, skipped = detect("auto", measure_bandwidth=False)
    assert device.kind == "cpu"
    (reason,) = skipped
    assert reason.device == "cuda"
    assert "\n" not in reason.reason
    with pytest.raises(ValueError, match="cuda:0 cannot be used: .*use --device cpu"):
        detect("cuda:0")


@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
def test_a_real_gpu() -> None:
    device, skipped = detect("auto")
    assert (device.kind, device.vendor, skipped) == ("cuda", "NVIDIA", ())
    assert 0 < device.usable_bytes <= device.memory_bytes
    assert device.bandwidth_bytes_per_s


@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:0 ", "mps", "cuda:99999"]
)
def test_bad_device_strings(device: str) -> None:
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda:N such as cuda:0, got") as error:
        detect(device)
    assert "\n" not in str(error.value)


def test_cpu_by_name_asks_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, fail="nvmlInit")
    device, skipped = detect("cpu", measure_bandwidth=False)
    assert (device.kind, skipped) == ("cpu", ())


def test_auto_takes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake(monkeypatch)
    device, skipped = detect("auto", measure_bandwidth=False)
    assert skipped == ()
    assert (device.kind, device.name, device.architecture) == ("cuda", "nvidia-geforce-rtx-4060", "sm_89")
    assert device.available_bytes == device.usable_bytes == 8000000000
    assert device.bandwidth_bytes_per_s == pytest.approx(272.0e9, rel=0.001)
    assert (device.bandwidth_basis, device.bandwidth_spread) == ("theoretical", None)
    assert device.fp32_ops_per_s == pytest.approx(15.1e12, rel=0.01)
    assert device.versions == {"driver": "590.10", "cuda driver": "13.2"}
    assert device.host == replace(profile_cpu(measure_bandwidth=False), **changing(device.host))
    assert module.open == 0


def changing(device: DeviceProfile | None) -> dict[str, Any]:
    """What differs from one moment to the next."""
    return {name: getattr(device, name) for name in ("available_bytes", "cgroup_used_bytes", "clock_hz")}


def test_auto_skips_a_gpu_that_the_runtime_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, gpus=2)

    def refuse(device: DeviceProfile) -> str:
        return f"ONNX Runtime has no CUDA provider for {device.architecture}"

    device, skipped = detect("auto", refuse_gpu=refuse, measure_bandwidth=False)
    reason = "ONNX Runtime has no CUDA provider for sm_89"
    assert device.kind == "cpu"
    assert skipped == (Skipped("cuda:0", reason), Skipped("cuda:1", reason))
    with pytest.raises(ValueError, match="no CUDA provider"):
        detect("cuda:1", refuse_gpu=refuse)


def test_an_absent_gpu_is_named_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, gpus=2)
    with pytest.raises(ValueError, match="cuda:3 cannot be used: .*lists 2 .*cuda:0 to cuda:1"):
        detect("cuda:3")
    fake(monkeypatch, gpus=0)
    assert detect("auto", measure_bandwidth=False)[1] == (Skipped("cuda", "the NVIDIA driver lists no GPU"),)


@pytest.mark.parametrize("fail", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName"])
def test_every_nvml_error_is_a_reason_and_nvml_is_shut_down(monkeypatch: pytest.MonkeyPatch, fail: str) -> None:
    module = fake(monkeypatch, fail=fail)
    device, skipped = detect("auto", measure_bandwidth=False)
    assert device.kind == "cpu"
    assert "Unknown Error" in skipped[0].reason
    assert module.open == 0


@pytest.mark.parametrize(
    "unsupported", ["nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMaxClockInfo"]
)
def test_what_a_gpu_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch, unsupported: str) -> None:
    fake(monkeypatch, unsupported=unsupported)
    device = profile_cuda(0, measure_bandwidth=False)
    known = (device.bandwidth_bytes_per_s is not None, device.fp32_ops_per_s is not None)
    assert known == (unsupported == "nvmlDeviceGetNumGpuCores", unsupported == "nvmlDeviceGetMemoryBusWidth")


def test_missing_bindings_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoGPU, match="pip install nvidia-ml-py"), nvml():
        pass


MODULES = "catalog, cpu, cuda, detect, device, kernels, measure, roofline"


def test_imports_are_light() -> None:
    heavy = ("torch", "numpy", "psutil", "pynvml", "supernet", "planner", "scipy")
    code = f"import sys; from profiles import {MODULES}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_imports_are_fast() -> None:
    code = f"import time; t = time.process_time(); from profiles import {MODULES}; print(time.process_time() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < max(0.15, 1.3 * standard_s())


def test_a_cpu_profile_imports_no_torch() -> None:
    code = "import sys; from profiles.detect import detect; detect('cpu'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
