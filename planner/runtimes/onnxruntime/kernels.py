"""Times of ONNX Runtime's quantized product, as a model runs it: many products in one graph, none of them in cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from planner.runtimes.base import Progress
from planner.runtimes.onnxruntime.export import ACCURACY_LEVEL
from planner.runtimes.onnxruntime.storage import matrix_bytes, parts
from profiles.kernels import KernelEntry
from profiles.measure import Timing, per_call, time_callable
from supernet.space import Choice

# (in_features, out_features), from the products of 135 M to those of 8 G parameter models.
SHAPES = (
    (576, 576), (576, 960), (576, 1536), (1536, 576), (896, 4864), (4864, 896), (1024, 1024), (1024, 3072),
    (2048, 2048), (2048, 8192), (8192, 2048), (4096, 4096), (4096, 14336),
)  # fmt: skip
QUICK_SHAPES = ((576, 576), (576, 1536), (1536, 576), (896, 4864), (4864, 896), (2048, 2048))
TABLES = ((576, 49152), (896, 151936))  # heads: as wide as vocabularies, and multiplied by one row of a prompt
TABLE_BITS, TABLE_ROWS = (4, 8), (1,)
GROUP_SIZES = (32, 64, 128)
QUICK_GROUP_SIZES = WIDE_GROUP_SIZES = (32, 128)
WIDE = 2048
ROWS = (1, 16, 128, 512)
QUICK_ROWS = (1, 128)
BITS = (2, 4, 8)
MAX_OPERATIONS = 4e10  # one measured call: about a second on two cores
MAX_OUTPUT_BYTES = 2**28  # a graph keeps the outputs of all its products
LARGEST_COPY_BYTES = 2**28
MAX_COPIES = 256  # each differs by a byte
TRIES = 3
SECONDS, QUICK_SECONDS = 40.0, 12.0  # of trying again where a timing was disturbed
STEADY = 0.15  # relative spread of an undisturbed timing


def measure(threads: int, cache_bytes: int, quick: bool = False, progress: Progress | None = None) -> list[KernelEntry]:
    """The kernel table's entries for this runtime, on `threads` threads.

    Weights are repeated until they take twice `cache_bytes`, so that every product reads its weights from memory.
    """
    shapes, groups, rows = (QUICK_SHAPES, QUICK_GROUP_SIZES, QUICK_ROWS) if quick else (SHAPES, GROUP_SIZES, ROWS)
    kinds: dict[tuple[int, int], tuple[tuple[int, ...], ...]] = dict.fromkeys(TABLES, (TABLE_BITS, groups, TABLE_ROWS))
    kinds |= {shape: (BITS, groups if shape[0] < WIDE else WIDE_GROUP_SIZES, rows) for shape in shapes}
    cases = [
        (k, n, Choice(b, g), counts)
        for (k, n), (bits, sizes, counts) in kinds.items() for b in bits for g in sizes if k % g == 0
    ]  # fmt: skip
    entries: list[KernelEntry] = []
    patient_until = time.monotonic() + (QUICK_SECONDS if quick else SECONDS)
    for done, (inputs, outputs, choice, counts) in enumerate(cases):
        tries = TRIES if time.monotonic() < patient_until else 1
        entries += measure_product(inputs, outputs, choice, counts, threads, cache_bytes, tries)
        if progress:
            progress(f"{inputs} x {outputs} at {choice.bits} bits", (done + 1) / len(cases))
    return entries


def measure_product(
    inputs: int, outputs: int, choice: Choice, rows: tuple[int, ...], threads: int, cache_bytes: int, tries: int = 1
) -> Iterator[KernelEntry]:
    cold = min(2 * cache_bytes, LARGEST_COPY_BYTES)
    copies = max(1, min(MAX_COPIES, -(-cold // matrix_bytes(inputs, outputs, choice))))
    many = session(inputs, outputs, choice, copies, threads)
    few = many if copies <= 4 else session(inputs, outputs, choice, 2, threads)
    rng = np.random.default_rng(0)
    for count in rows:
        # With many rows the arithmetic takes longer than the memory; two copies then show what many would.
        run, repeats = (many, copies) if count <= 16 else (few, 2 if few is not many else copies)
        if 2 * count * inputs * outputs > MAX_OPERATIONS or repeats * count * outputs * 4 > MAX_OUTPUT_BYTES:
            continue
        feed = {"x": rng.standard_normal((count, inputs), np.float32)}
        timing = per_call(undisturbed(partial(run.run, ["y0"], feed), tries), repeats)
        yield KernelEntry(
            "onnxruntime", choice.bits, choice.group_size, count, inputs, outputs, threads,
            timing.median_ms, timing.p10_ms, timing.p90_ms, timing.repeats,
        )  # fmt: skip


def undisturbed(fn: Callable[[], object], tries: int) -> Timing:
    """The fastest of up to `tries` timings; one that is already steady is enough."""
    best = time_callable(fn, min_repeats=4, min_time_s=0.03)
    for _ in range(tries - 1):
        if best.spread < STEADY:
            break
        again = time_callable(fn, min_repeats=4, min_time_s=0.03)
        best = min(best, again, key=lambda timing: timing.median_ms)
    return best


def one_row_ms(threads: int, cache_bytes: int) -> float:
    """As `Products.one_row_ms`."""
    (entry,) = measure_product(1024, 3072, Choice(4, 32), (1,), threads, cache_bytes, TRIES)
    return entry.p90_ms


def session(inputs: int, outputs: int, choice: Choice, copies: int, threads: int) -> Any:
    """`copies` products of the same input, each with weights of its own.

    The weights differ: ONNX Runtime packs equal ones once, which would put them all in the cache. For the same reason
    graph optimization is off.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    blocks = inputs // choice.group_size
    codes = rng.integers(0, 256, (outputs, blocks, choice.group_size * choice.bits // 8), np.uint8)
    zeros = rng.integers(0, 256, (outputs, -(-blocks * choice.bits // 8)), np.uint8)  # a symmetric choice reads none
    scales = np.full((outputs, blocks), 0.01, np.float32)
    initializers, nodes = [], []
    for i in range(copies):
        tensors = {"codes": codes ^ np.uint8(i), "scales": scales + np.float32(i * 1e-5), "zeros": zeros ^ np.uint8(i)}
        initializers += [numpy_helper.from_array(tensors[name], f"{name}{i}") for name in parts(choice)]
        node = helper.make_node(
            "MatMulNBits", ["x", *(f"{name}{i}" for name in parts(choice))], [f"y{i}"], domain="com.microsoft",
            K=inputs, N=outputs, bits=choice.bits, block_size=choice.group_size, accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip
        nodes.append(node)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])
    ys = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["rows", outputs]) for i in range(copies)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "products", [x], ys, initializers), opset_imports=opsets, ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        onnx.ModelProto.SerializeToString(model), options, providers=["CPUExecutionProvider"]
    )
