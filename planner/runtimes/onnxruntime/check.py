"""Whether ONNX Runtime multiplies, and onnxruntime-genai loads."""

from __future__ import annotations

import importlib
from typing import Any

from planner.checks import FAIL, PASS, Check, in_a_line


def multiplies() -> Check:
    name, fix = "onnxruntime", "pip install --force-reinstall onnxruntime onnx"
    try:
        import onnxruntime

        value = _quantized_product()
    except Exception as error:  # missing, or a build that does not fit this machine
        return Check(name, FAIL, in_a_line(error), fix)
    if abs(value - 32.0) > 0.5:
        return Check(name, FAIL, f"a 4-bit product gave {value}, not 32", fix)
    return Check(name, PASS, f"{onnxruntime.__version__}, 4-bit products run")


def _quantized_product() -> float:
    """32 ones times 32 weights of 1 (code 9, zero 8, scale 1) through the runtime's own 4-bit product."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights: dict[str, np.ndarray] = {
        "q": np.full((1, 1, 16), 0x99, np.uint8),
        "s": np.ones((1, 1), np.float32),
        "z": np.full((1, 1), 0x08, np.uint8),
    }
    numbers: dict[str, Any] = {"K": 32, "N": 1, "bits": 4, "block_size": 32, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", **numbers)
    graph = helper.make_graph(
        [node],
        "check",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.ones((1, 32), np.float32)})[0].item())


def genai_loads() -> Check:
    try:
        genai = importlib.import_module("onnxruntime_genai")
    except Exception as error:
        return Check("onnxruntime-genai", FAIL, in_a_line(error), "pip install --force-reinstall onnxruntime-genai")
    return Check("onnxruntime-genai", PASS, str(genai.__version__))
