"""Times of llama.cpp's product of quantized weights, as a model runs it: many in one graph, none of them in cache.

Runs in the worker, beside capi.py and without the project. Weights lie where llama.cpp would put them: in the first of
the processor's own kinds of memory that takes the product (where they are repacked), or else as the file has them.
"""

from __future__ import annotations

import ctypes
import struct
import time
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from itertools import count, takewhile
from typing import Any

F32 = 0
MANY_ROWS = 16
TENSOR_BYTES = 512  # of what ggml keeps of a tensor, and more


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_init": (c_void_p, (InitParams,)),
    "ggml_free": (None, (c_void_p,)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph_custom": (c_void_p, (c_void_p, c_size_t, c_bool)),
    "ggml_graph_overhead_custom": (c_size_t, (c_size_t, c_bool)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_free": (None, (c_void_p,)),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_get_device": (c_void_p, (c_void_p,)),
    "ggml_backend_dev_backend_reg": (c_void_p, (c_void_p,)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_dev_supports_op": (c_bool, (c_void_p, c_void_p)),
    "ggml_backend_get_default_buffer_type": (c_void_p, (c_void_p,)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_buffer_free": (None, (c_void_p,)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_char_p, c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
}


class Products:
    """`copies` products of the same input by weights of their own: `(outputs, inputs)` of the ggml type `kind`.

    So many `evicted` bytes are read before each turn, in order that none of the weights are in cache from the last.
    """

    def __init__(
        self, library: Any, kind: int, inputs: int, outputs: int, copies: int, threads: int, evicted: int = 0
    ) -> None:
        self._ggml = library.functions(_FUNCTIONS)
        self._evicting = bytes([2]) * evicted  # written: memory that is cleared alone may be one page, over and over
        self._kind, self._inputs, self._outputs = kind, inputs, outputs
        self._backend = self._ggml.ggml_backend_cpu_init()
        self._ggml.ggml_backend_cpu_set_n_threads(self._backend, threads)
        memory = next(filter(self._takes, self._own_memory()), None)
        self.repacked = memory is not None
        self._weights, self._tensors, self._buffer = self._placed(copies, memory or self._plain_memory())
        size = self._ggml.ggml_nbytes(self._tensors[0])
        data = bytes(range(7, 47)) * (size // 40 + 1)  # values are tame numbers of every type: time depends on no other
        for tensor in self._tensors:
            self._ggml.ggml_backend_tensor_set(tensor, data, 0, size)

    def times(self, rows: int, repeats: int, seconds: float) -> list[float]:
        """Milliseconds of one product for inputs of `rows`, each the mean over the copies, ascending; at least
        `repeats` of them and `seconds` long, after one that is not counted.

        With many rows the arithmetic takes longer than the memory; two copies then show what all would.
        """
        ggml = self._ggml
        copies = len(self._tensors) if rows <= MANY_ROWS else min(2, len(self._tensors))
        room = self._room(copies + 1, copies)
        x = ggml.ggml_new_tensor_2d(room, F32, self._inputs, rows)
        graph = ggml.ggml_new_graph_custom(room, 2 * copies + 1, False)
        for tensor in self._tensors[:copies]:
            ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(room, tensor, x))
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(room, self._plain_memory())
        values = struct.pack("<4f", 0.1, -0.2, 0.3, -0.4) * (self._inputs * rows // 4)
        ggml.ggml_backend_tensor_set(x, values, 0, len(values))
        found: list[float] = []
        ggml.ggml_backend_graph_compute(self._backend, graph)
        until = time.perf_counter() + seconds
        while len(found) < repeats or time.perf_counter() < until:
            if rows <= MANY_ROWS:
                self._evicting.find(1)  # which is nowhere: every byte is read
            start = time.perf_counter()
            ggml.ggml_backend_graph_compute(self._backend, graph)
            found.append(1e3 * (time.perf_counter() - start) / copies)
        ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(room)
        return sorted(found)

    def close(self) -> None:
        self._ggml.ggml_backend_buffer_free(self._buffer)
        self._ggml.ggml_free(self._weights)
        self._ggml.ggml_backend_free(self._backend)

    def _room(self, tensors: int, nodes: int = 0) -> Any:
        """What describes tensors, and a graph of so many products."""
        size = tensors * TENSOR_BYTES
        if nodes:
            size += nodes * TENSOR_BYTES + self._ggml.ggml_graph_overhead_custom(2 * nodes + 1, False)
        return self._ggml.ggml_init(InitParams(size, None, True))

    def _placed(self, copies: int, memory: Any) -> tuple[Any, list[Any], Any]:
        room = self._room(copies)
        tensors = [self._ggml.ggml_new_tensor_2d(room, self._kind, self._inputs, self._outputs) for _ in range(copies)]
        return room, tensors, self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(room, memory)

    def _plain_memory(self) -> Any:
        return self._ggml.ggml_backend_get_default_buffer_type(self._backend)

    def _own_memory(self) -> list[Any]:
        """The kinds of memory that this processor has for weights, besides the plain one."""
        device = self._ggml.ggml_backend_get_device(self._backend)
        registry = self._ggml.ggml_backend_dev_backend_reg(device)
        address = self._ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
        return list(takewhile(bool, (kinds[i] for i in count()))) if kinds else []

    def _takes(self, memory: Any) -> bool:
        """Whether products of weights in this kind of memory are supported: asked of the processor, with one there."""
        ggml = self._ggml
        room, (tensor,), buffer = self._placed(1, memory)
        asked = self._room(2)
        x = ggml.ggml_new_tensor_2d(asked, F32, self._inputs, 1)
        device = ggml.ggml_backend_get_device(self._backend)
        found = bool(buffer) and ggml.ggml_backend_dev_supports_op(device, ggml.ggml_mul_mat(asked, tensor, x))
        ggml.ggml_free(asked)
        if buffer:
            ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(room)
        return bool(found)
