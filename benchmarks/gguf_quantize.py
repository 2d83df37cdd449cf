"""llama.cpp's own quantizer: one call of its C interface, in a process of its own.

    python -I gguf_quantize.py REQUEST.json

The request names the library, the file of floats, the file to write, the number of the file's type, the numbers of the
types of the embedding and the head where they are set, and an .npz file with the importance of each matrix's columns.
The interface is that of `@node-llama-cpp/linux-x64` 3.22.1, whose parameters stand as here: checked by their defaults.
"""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

ERROR = 4  # of the levels of a log
UNSET = 43  # the number of types that the library knows: a type that is not set


class Importance(ctypes.Structure):
    """Of one matrix. A list of them ends with one without a name."""

    _fields_ = [("name", c_char_p), ("data", POINTER(c_float)), ("size", c_size_t)]


class Parameters(ctypes.Structure):
    _fields_ = [
        ("nthread", c_int32), ("ftype", c_int), ("output_tensor_type", c_int), ("token_embedding_type", c_int),
        ("allow_requantize", c_bool), ("quantize_output_tensor", c_bool), ("only_copy", c_bool), ("pure", c_bool),
        ("keep_split", c_bool), ("dry_run", c_bool), ("imatrix", POINTER(Importance)), ("kv_overrides", c_void_p),
        ("tensor_overrides", c_void_p), ("prune_layers", c_void_p), ("max_buf_size", c_size_t),
    ]  # fmt: skip


DEFAULTS = (0, 7, UNSET, UNSET, False, True, False, False, False, False, False, None, None, None, 2**33)
_Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


def opened(path: str) -> tuple[Any, list[str]]:
    """The library, and the list that its errors come to; ValueError where its parameters are others."""
    library = ctypes.CDLL(path)
    said: list[str] = []
    heard = _Log(lambda level, text, _: said.append(text.decode("utf-8", "replace")) if level == ERROR else None)
    library.llama_log_set.argtypes = (_Log, c_void_p)
    library.llama_log_set(heard, None)
    library.heard = heard  # kept: the library calls it for as long as it lives
    library.llama_model_quantize_default_params.restype = Parameters
    library.llama_model_quantize.argtypes = (c_char_p, c_char_p, POINTER(Parameters))
    library.llama_model_quantize.restype = c_uint32
    found = library.llama_model_quantize_default_params()
    values = tuple(
        bool(found.imatrix) if name == "imatrix" else getattr(found, name) for name, _ in Parameters._fields_
    )
    if values != DEFAULTS:
        raise ValueError(f"the quantizer's parameters must stand as in this file, its defaults are {values}")
    return library, said


def importance(path: str) -> Any:
    """The list that the library reads."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        arrays = {name: np.ascontiguousarray(file[name], np.float32) for name in file.files}
    entries = [
        Importance(name.encode(), values.ctypes.data_as(POINTER(c_float)), values.size)
        for name, values in arrays.items()
    ]
    found = (Importance * (len(entries) + 1))(*entries, Importance(None, None, 0))
    found.arrays = arrays  # the list points into them
    return found


def main(request: Path) -> int:
    asked = json.loads(request.read_text(encoding="utf-8"))
    sys.path += asked["libraries"]
    library, said = opened(asked["library"])
    parameters = library.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype = asked["threads"], asked["type"]
    if asked["embedding"] is not None:
        parameters.token_embedding_type = asked["embedding"]
    if asked["output"] is not None:
        parameters.output_tensor_type = asked["output"]
    entries = importance(asked["importance"]) if asked["importance"] else None
    if entries is not None:
        parameters.imatrix = entries
    code = library.llama_model_quantize(asked["source"].encode(), asked["out"].encode(), ctypes.byref(parameters))
    if code:
        sys.stderr.write(" ".join(" ".join(said[-3:]).split()) + "\n")
    return int(bool(code))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
