"""The runtimes a package can be made for."""

from planner.runtimes.base import Runtime
from planner.runtimes.onnxruntime.runtime import OnnxRuntime

RUNTIMES: dict[str, type[Runtime]] = {"onnxruntime": OnnxRuntime}
