"""The part of llama.cpp's C interface that serving needs, through ctypes, for one build of it.

The structs change from build to build without a sign in the library. So the build is pinned (`serving.VERSION`), the
parameters come from the library's own defaults, and `Library` checks that the defaults which it knows stand where this
file has their fields. What is not named here is passed on as it came.

Nothing of the project is imported: a process that serves holds this file, the library and the model.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_uint32, c_void_p
from pathlib import Path
from typing import Any

ERROR = 4  # of the levels of a log
# How a file is loaded: read, and not mapped as by default (-1). What is repacked would be in memory twice while a
# mapped file loads: the process then takes the most before it serves, and no sum over the weights would be its peak.
READ = 0
FLASH_ATTENTION = 1  # always on: without it a quantized cache is refused, and scores of every cached token are kept
KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # numbers of ggml's types


class LlamaError(RuntimeError):
    """What llama.cpp refused, in its own words."""


class ModelParams(ctypes.Structure):
    _fields_ = [
        ("_devices", c_void_p * 2), ("n_gpu_layers", c_int32), ("split_mode", c_int), ("load_mode", c_int),
        ("lazy_mode", c_int), ("main_gpu", c_int32), ("_callbacks", c_void_p * 4), ("vocab_only", c_bool),
        ("check_tensors", c_bool), ("use_extra_bufts", c_bool), ("no_host", c_bool), ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]  # fmt: skip


class ContextParams(ctypes.Structure):
    _fields_ = [
        ("n_ctx", c_uint32), ("n_batch", c_uint32), ("n_ubatch", c_uint32), ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32), ("n_outputs_max", c_uint32), ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32), ("n_threads_batch", c_int32), ("_kinds", c_int * 3), ("attention_type", c_int),
        ("flash_attn_type", c_int), ("_rope", c_float * 8), ("_callback", c_void_p * 2), ("type_k", c_int),
        ("type_v", c_int), ("_abort", c_void_p * 3), ("embeddings", c_bool), ("offload_kqv", c_bool),
        ("no_perf", c_bool), ("op_offload", c_bool), ("swa_full", c_bool), ("kv_unified", c_bool),
        ("_samplers", c_void_p), ("_n_samplers", ctypes.c_size_t), ("_other", c_void_p),
    ]  # fmt: skip


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8)),
    ]  # fmt: skip


_Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
# name: (result, arguments)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_Log, c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits": (POINTER(c_float), (c_void_p,)),
    "llama_sampler_init_greedy": (c_void_p, ()),
    "llama_sampler_sample": (c_int32, (c_void_p, c_void_p, c_int32)),
    "llama_sampler_free": (None, (c_void_p,)),
    "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
}


class Library:
    """The shared object at `path`. LlamaError where it is another build than the one that this file was written for.

    The library's log is quiet but for errors; the last ones are kept, to be the reason where something fails.
    """

    def __init__(self, path: str) -> None:
        try:
            self._library = ctypes.CDLL(path)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise LlamaError(f"llama.cpp's library must be the pinned build, this one is not: {error}") from None
        self.said: list[str] = []
        self._heard = _Log(self._hear)  # kept: the library calls it for as long as it lives
        self.call("llama_log_set", self._heard, None)
        self.call("llama_backend_init")
        self._check()

    def call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._library, name)(*arguments)

    def functions(self, found: dict[str, tuple[Any, tuple[Any, ...]]]) -> Any:
        """The library itself, with these functions declared too."""
        for name, (result, arguments) in found.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        return self._library

    @property
    def reason(self) -> str:
        """The last errors that the library logged, in one line."""
        return " ".join(" ".join(self.said[-3:]).split()) or "it gave no reason"

    def _hear(self, level: int, text: bytes, _: Any) -> None:
        if level == ERROR:
            self.said.append(text.decode("utf-8", "replace"))
            os.write(2, text)  # the process may end by what went wrong

    def _check(self) -> None:
        model = self.call("llama_model_default_params")
        context = self.call("llama_context_default_params")
        known: tuple[Any, ...] = (
            model.n_gpu_layers, model.split_mode, model.vocab_only, model.check_tensors, model.use_extra_bufts,
            context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max, context.n_outputs_max_per_seq,
            context.flash_attn_type, context.type_k, context.type_v, context.embeddings, context.offload_kqv,
            context.no_perf, context.op_offload, context.swa_full, context.kv_unified,
        )  # fmt: skip
        wanted = (-1, 1, False, False, True, 512, 2048, 512, 1, 1, -1, 1, 1, False, True, True, True, True, False)
        if known != wanted:
            raise LlamaError("llama.cpp's library must be the pinned build, this one has other parameters")


class Model:
    """A GGUF file, read into memory. LlamaError, with llama.cpp's reason, where it does not load."""

    def __init__(self, library: Library, path: Path, vocab_only: bool = False) -> None:
        params = library.call("llama_model_default_params")
        params.n_gpu_layers, params.load_mode, params.vocab_only = 0, READ, vocab_only
        self.library = library
        self.handle = library.call("llama_model_load_from_file", str(path).encode(), params)
        if not self.handle:
            raise LlamaError(library.reason)
        self.vocab = library.call("llama_model_get_vocab", self.handle)
        self.vocabulary = int(library.call("llama_vocab_n_tokens", self.vocab))

    def tokens(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text by llama.cpp's own tokenizer, with what it puts around one if `special`."""
        data = text.encode()
        room = len(data) + 16
        while True:
            found = (c_int32 * room)()
            count = self.library.call("llama_tokenize", self.vocab, data, len(data), found, room, special, True)
            if count >= 0:
                return list(found[:count])
            room = -count


class Context:
    """`batch` caches of up to `context` tokens each, and the buffers to fill them `chunk` tokens at a time.

    `outputs` is for how many of a pass's tokens logits are kept; only the last one's where it is None.
    """

    def __init__(
        self, model: Model, context: int, threads: int, kv_type: str, chunk: int, batch: int = 1,
        outputs: int | None = None,
    ) -> None:  # fmt: skip
        library = model.library
        params = library.call("llama_context_default_params")
        params.n_ctx, params.n_seq_max = -(-context // PADDED) * PADDED * batch, batch
        params.n_batch = max(chunk, batch)  # a pass has a token of every sequence
        params.n_ubatch = chunk
        params.n_outputs_max = batch if outputs is None else outputs
        params.n_outputs_max_per_seq = 1 if outputs is None else outputs
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH_ATTENTION
        params.type_k = params.type_v = KV_TYPES[kv_type]
        self.model, self._library, self._chunk = model, library, chunk
        self.handle = library.call("llama_init_from_model", model.handle, params)
        if not self.handle:
            raise LlamaError(library.reason)
        self._greedy = library.call("llama_sampler_init_greedy")

    def clear(self) -> None:
        """Forget all tokens."""
        self._library.call("llama_memory_clear", self._library.call("llama_get_memory", self.handle), False)

    def close(self) -> None:
        self._library.call("llama_sampler_free", self._greedy)
        self._library.call("llama_free", self.handle)

    def read(self, ids: Sequence[int], start: int = 0, sequence: int = 0) -> None:
        """Put tokens of one sequence into its cache from position `start` on, a chunk at a time; logits come of the
        last."""
        for at in range(0, len(ids), self._chunk):
            part = ids[at : at + self._chunk]
            last = at + len(part) == len(ids)
            self._decode([(t, start + at + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)])

    def step(self, tokens: Sequence[int], position: int) -> None:
        """One more token of every sequence, all at `position`."""
        self._decode([(token, position, sequence, True) for sequence, token in enumerate(tokens)])

    def all_logits(self, ids: Sequence[int], start: int) -> Any:
        """Logits `(tokens, vocabulary)` of at most a chunk of tokens from position `start` on; valid until the next."""
        import numpy as np

        self._decode([(token, start + i, 0, True) for i, token in enumerate(ids)])
        found = self._library.call("llama_get_logits", self.handle)
        return np.ctypeslib.as_array(found, (len(ids), self.model.vocabulary))

    def likeliest(self, index: int = -1) -> int:
        """The likeliest token by the logits of the last pass: of its output `index`."""
        return int(self._library.call("llama_sampler_sample", self._greedy, self.handle, index))

    def _decode(self, entries: Iterable[tuple[int, int, int, bool]]) -> None:
        """A pass over (token, position, sequence, whether logits are wanted) each."""
        tokens, positions, sequences, wanted = zip(*entries, strict=True)
        count = len(tokens)
        ids = [(c_int32 * 1)(s) for s in sequences]
        pointers = (POINTER(c_int32) * count)(*(ctypes.cast(one, POINTER(c_int32)) for one in ids))
        batch = Batch(
            count, (c_int32 * count)(*tokens), None, (c_int32 * count)(*positions), (c_int32 * count)(*([1] * count)),
            pointers, (c_int8 * count)(*map(int, wanted)),
        )  # fmt: skip
        code = self._library.call("llama_decode", self.handle, batch)
        if code:
            raise LlamaError(f"a pass over {count} tokens ended with {code}: {self._library.reason}")


PADDED = 256  # llama.cpp makes the cache of a sequence a multiple of so many tokens
