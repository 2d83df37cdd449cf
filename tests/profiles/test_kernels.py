"""KernelTable: measured hits verbatim, left-out shapes close, nothing invented where nothing was measured."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.kernels import KernelEntry, KernelTable
from profiles.measure import Timing, percentile, time_callable
from records.reading import as_record

SHAPES = ((576, 576), (576, 960), (576, 3072), (1536, 576), (1024, 1024), (2048, 512), (512, 2048), (1024, 4096),
          (2048, 2048), (4096, 1024), (768, 2304), (4096, 4096), (576, 49152))  # fmt: skip


def entry(
    bits: int, rows: int, k: int, n: int, ms: float, *, group_size: int = 64, spread: float = 0.02
) -> KernelEntry:
    return KernelEntry("ort", bits, group_size, rows, k, n, 2, ms, ms * (1 - spread), ms * (1 + spread), 20)


def physical_ms(bits: int, rows: int, k: int, n: int, group_size: int = 64) -> float:
    """A start, the weights' bytes at 40 GB/s or the operations at 500 Gop/s, and a 2-bit kernel with tiles of 256."""
    tiled = -(-k // 256) * 256 if bits == 2 else k
    weight_bytes = tiled * n * (bits / 8 + 5 / group_size)
    start, convert, write = 0.004, rows * k * 2e-7, rows * n * 4e-7
    return start + convert + write + max(weight_bytes / 40e6, 2 * rows * tiled * n / 500e6)


def table(noise: float = 0.0, without: tuple[int, int] | None = None) -> KernelTable:
    draw = random.Random(7)
    return KernelTable(
        tuple(
            entry(bits, rows, k, n, physical_ms(bits, rows, k, n) * draw.uniform(1 - noise, 1 + noise))
            for bits in (2, 4, 8)
            for rows in (1, 16, 128)
            for k, n in SHAPES
            if (k, n) != without
        )
    )


def test_a_measured_product_comes_back_as_measured() -> None:
    whole = table(noise=0.05)
    for e in whole.entries:
        found = whole.estimate("ort", e.bits, e.group_size, e.rows, e.in_features, e.out_features)
        assert found is not None
        assert (found.ms, found.basis) == (e.median_ms, "measured")
        assert found.spread == pytest.approx(0.02)


@pytest.mark.parametrize("shape", SHAPES[1:11])
def test_left_out_shapes_are_within_15_percent(shape: tuple[int, int]) -> None:
    partial = table(noise=0.03, without=shape)
    for bits in (2, 4, 8):
        for rows in (1, 16, 128):
            found = partial.estimate("ort", bits, 64, rows, *shape)
            assert found is not None
            assert found.basis == "interpolated"
            assert found.ms == pytest.approx(physical_ms(bits, rows, *shape), rel=0.15)
            assert 0 < found.spread < 0.2


@pytest.mark.parametrize("rows", [2, 4, 8, 32, 64, 256, 512])
def test_rows_between_and_beyond_the_measured(rows: int) -> None:
    found = table().estimate("ort", 4, 64, rows, 1024, 4096)
    assert found is not None
    truth = physical_ms(4, rows, 1024, 4096)
    # Between 1 and 16 rows lies the bend from streaming to computing, which a straight line cuts.
    assert found.ms == pytest.approx(truth, rel=0.6 if rows < 16 else 0.05)
    assert found.basis == "interpolated"


def test_rows_never_make_a_product_faster() -> None:
    whole = table()
    for k, n in ((640, 640), (900, 5000)):
        times = [found.ms for rows in range(1, 300, 7) if (found := whole.estimate("ort", 4, 64, rows, k, n))]
        assert times == sorted(times)


def test_group_sizes_between_the_measured_but_not_outside() -> None:
    groups = (32, 128)
    entries = [
        entry(4, 1, k, n, physical_ms(4, 1, k, n, group), group_size=group) for group in groups for k, n in SHAPES
    ]
    whole = KernelTable(tuple(entries))
    found = whole.estimate("ort", 4, 64, 1, 2048, 2048)
    assert found is not None
    assert found.ms == pytest.approx(physical_ms(4, 1, 2048, 2048, 64), rel=0.05)
    assert whole.estimate("ort", 4, 16, 1, 2048, 2048) is None
    assert whole.estimate("ort", 4, 256, 1, 2048, 2048) is None


def test_nothing_measured_is_no_estimate() -> None:
    whole = table()
    assert whole.estimate("ort", 3, 64, 1, 576, 576) is None
    assert whole.estimate("llamacpp", 4, 64, 1, 576, 576) is None
    assert whole.estimate("ort", 4, 64, 1, 576, 576, threads=8) is None
    assert KernelTable().estimate("ort", 4, 64, 1, 576, 576) is None
    assert not KernelTable()
    assert whole.bits("ort") == (2, 4, 8)


def test_few_shapes_still_give_an_estimate_with_a_wide_spread() -> None:
    few = KernelTable(tuple(entry(4, 1, k, n, physical_ms(4, 1, k, n)) for k, n in SHAPES[3:6]))
    found = few.estimate("ort", 4, 64, 1, 1200, 1200)
    assert found is not None
    assert found.spread >= 0.3
    assert found.ms == pytest.approx(physical_ms(4, 1, 1200, 1200), rel=0.3)
    one = KernelTable((entry(4, 1, 576, 576, 0.01),))
    scaled = one.estimate("ort", 4, 64, 1, 576, 1152)
    assert scaled is not None
    assert 0.01 <= scaled.ms <= 0.02


def test_a_noisy_measurement_counts_for_less() -> None:
    clean = table(without=(1024, 4096))
    wild = entry(4, 1, 1024, 4096, 5 * physical_ms(4, 1, 1024, 4096), spread=0.9)
    disturbed = KernelTable((*clean.entries, wild))
    near, before = (t.estimate("ort", 4, 64, 1, 1100, 3000) for t in (disturbed, clean))
    assert near is not None
    assert before is not None
    assert near.ms == pytest.approx(before.ms, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(
    start=st.floats(1e-4, 1e-1), per_weight=st.floats(1e-9, 1e-6), per_output=st.floats(0, 1e-5),
    k=st.integers(512, 4096), n=st.integers(512, 8192),
)  # fmt: skip
def test_what_the_formula_can_say_it_says_exactly(
    start: float, per_weight: float, per_output: float, k: int, n: int
) -> None:
    def truth(k: int, n: int) -> float:
        return start + per_weight * k * n + per_output * n

    whole = KernelTable(tuple(entry(4, 1, *shape, truth(*shape)) for shape in SHAPES))
    found = whole.estimate("ort", 4, 64, 1, k, n)
    assert found is not None
    assert found.ms == pytest.approx(truth(k, n), rel=0.01)


def test_json_round_trip_keeps_estimates() -> None:
    whole = dataclasses.replace(table(noise=0.1), date="2026-11-22", versions={"onnxruntime": "1.31.1"})
    again = as_record(KernelTable, json.loads(json.dumps(whole.to_json())), "kernels")
    assert again == whole
    assert again.estimate("ort", 4, 64, 7, 999, 777) == whole.estimate("ort", 4, 64, 7, 999, 777)


def test_wrong_tables_are_refused() -> None:
    one = entry(4, 1, 64, 64, 1.0)
    with pytest.raises(ValueError, match="once"):
        KernelTable((one, one))
    with pytest.raises(ValueError, match="p10_ms <= median_ms"):
        dataclasses.replace(one, p10_ms=2.0)
    with pytest.raises(ValueError, match="rows of a kernel entry must be at least 1, got 0"):
        dataclasses.replace(one, rows=0)
    with pytest.raises(ValueError, match="must be positive"):
        KernelTable((one,)).estimate("ort", 4, 64, 0, 64, 64)


def test_a_planner_may_ask_thousands_of_times_a_second() -> None:
    whole = table(noise=0.03)
    whole.estimate("ort", 4, 64, 1, 640, 640)  # fits
    start = time.process_time()  # others may be at work beside
    for i in range(2000):
        whole.estimate("ort", 4, 64, 1 + i % 50, 600 + i, 900)
    assert time.process_time() - start < 1.0
    start = time.process_time()
    for _ in range(20000):
        whole.estimate("ort", 4, 64, 1, 640, 640)
    assert time.process_time() - start < 1.0


def test_time_callable_counts_and_orders() -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)

    timing = time_callable(work, min_repeats=5, min_time_s=0.02, warmup=2)
    assert calls == timing.repeats + 2
    assert timing.repeats >= 5
    assert 1.0 <= timing.p10_ms <= timing.median_ms <= timing.p90_ms
    assert timing.spread >= 0
    with pytest.raises(ValueError, match="at least 1"):
        time_callable(work, min_repeats=0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], fraction: float) -> None:
    assert percentile(sorted(values), fraction) == pytest.approx(float(np.quantile(values, fraction)), abs=1e-6)


def _product(bits: int, k: int, n: int, copies: int, rows: int) -> Callable[[], object]:
    """Runs `copies` different quantized matrices in ONNX Runtime, as a model does: their bytes come from memory."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    draw = np.random.default_rng(0)
    groups, nodes, inits, outs = k // 64, [], [], []
    for i in range(copies):
        codes = draw.integers(0, 256, (n, groups, 8 * bits), dtype=np.uint8)
        zeros = np.zeros((n, -(-groups * bits // 8)), np.uint8)
        for name, value in ((f"q{i}", codes), (f"s{i}", np.full((n, groups), 0.01, np.float32)), (f"z{i}", zeros)):
            inits.append(numpy_helper.from_array(value, name))
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"q{i}", f"s{i}", f"z{i}"], [f"y{i}"], domain="com.microsoft",
                             bits=bits, block_size=64, K=k, N=n, accuracy_level=4)
        )  # fmt: skip
        outs.append(helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, ["rows", n]))
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", k])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], outs, inits), opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": draw.standard_normal((rows, k)).astype(np.float32)}
    return lambda: session.run(None, feed)


def test_left_out_shapes_of_onnxruntimes_own_product() -> None:
    shapes = ((256, 512), (512, 512), (512, 1024), (1024, 512), (768, 768), (1024, 1024), (512, 2048), (1024, 2048))
    copies = {(k, n): max(4, (8 << 20) // (k * n // 2)) for k, n in shapes}
    runs = {shape: _product(4, *shape, copies[shape], rows=8) for shape in shapes}
    samples: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(
        24
    ):  # in turn, and the quietest round counts: this tests the fit, on machines that do other things too
        for shape, run in runs.items():
            timing: Timing = time_callable(run, min_repeats=1, min_time_s=0, warmup=0)
            samples[shape].append(timing.median_ms / copies[shape])
    for times in samples.values():
        times.sort()
    entries = [
        KernelEntry("ort", 4, 64, 8, k, n, 1, *(percentile(times, q) for q in (0, 0, 0.1)), len(times))
        for (k, n), times in samples.items()
    ]
    errors = []
    for left_out in entries[1:-1]:
        rest = KernelTable(tuple(e for e in entries if e is not left_out))
        found = rest.estimate("ort", 4, 64, 8, left_out.in_features, left_out.out_features)
        assert found is not None
        errors.append(abs(found.ms / left_out.median_ms - 1))
    assert percentile(sorted(errors), 0.5) < 0.15, errors


def test_kernels_of_the_same_bits_are_told_apart() -> None:
    plain, other = entry(4, 1, 1024, 1024, 1.0), entry(4, 1, 1024, 1024, 2.0)
    whole = KernelTable((plain, dataclasses.replace(other, kernel="Q4_1")))
    times = {name: whole.estimate("ort", 4, 64, 1, 1024, 1024, kernel=name) for name in ("", "Q4_1", "Q4_0")}
    assert times["Q4_0"] is None
    assert [found.ms for found in (times[""], times["Q4_1"]) if found] == [1.0, 2.0]
    assert as_record(KernelTable, json.loads(json.dumps(whole.to_json())), "a table") == whole
