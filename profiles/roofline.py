"""How long a product takes where nothing was measured: the larger of moving its bytes and doing its operations.

Peaks are never reached. On a 2-core AVX512-VNNI server, ONNX Runtime's 4-bit product with many rows reaches 0.40 of the
peak that clock and instruction set give (2 x 128 x 1024 x 4096 operations in 2.03 ms); datasheet bandwidths are reached
to about three quarters by copies. The estimate is good to a factor of two, and says so.
"""

from __future__ import annotations

from profiles.device import DeviceProfile
from profiles.kernels import ROOFLINE, KernelEstimate

COMPUTE_EFFICIENCY = 0.4
BANDWIDTH_EFFICIENCY = 0.75  # of a datasheet's or a theoretical bandwidth; a measured one counts in full
SPREAD = 1.0

# int8 operations a cycle and core, a multiply-add counted as two, of the best instruction set that runtimes use for
# products of quantized weights: that leaves out AMX's tiles.
OPS_PER_CYCLE = {"avx512_vnni": 256, "avx_vnni": 128, "i8mm": 128, "avx2": 64, "dotprod": 64, "neon": 32}
PRECISIONS = ("int8", "bf16", "fp32")


def roofline(device: DeviceProfile, bytes_moved: float, ops: float, precision: str = "int8") -> KernelEstimate | None:
    """ms for moving `bytes_moved` and doing `ops` in `precision` (what the runtime's kernel computes in: int8 for
    ONNX Runtime on a CPU, bf16 on a GPU); None where the device's bandwidth or compute is unknown."""
    rate = peak_ops_per_s(device, precision)
    bandwidth = device.bandwidth_bytes_per_s
    if rate is None or bandwidth is None:
        return None
    if device.bandwidth_basis != "measured":
        bandwidth *= BANDWIDTH_EFFICIENCY
    return KernelEstimate(1e3 * max(bytes_moved / bandwidth, ops / (rate * COMPUTE_EFFICIENCY)), SPREAD, ROOFLINE)


def peak_ops_per_s(device: DeviceProfile, precision: str = "int8") -> float | None:
    """The published peak in `precision`, or in the next wider one that is published, else threads x clock x what the
    best instruction set does a cycle (a processor's int8 only)."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    published = {"int8": device.int8_ops_per_s, "bf16": device.bf16_ops_per_s, "fp32": device.fp32_ops_per_s}
    for name in PRECISIONS[PRECISIONS.index(precision) :]:
        if published[name] is not None:
            return published[name]
    cores = device.threads or device.cores_physical
    per_cycle = next((ops for name, ops in OPS_PER_CYCLE.items() if name in device.instruction_sets), None)
    if precision != "int8" or not cores or not device.clock_hz or not per_cycle:
        return None
    return cores * device.clock_hz * per_cycle
