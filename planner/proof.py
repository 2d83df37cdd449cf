"""The proof in a package: what its subnet and the original model say of a text, to be held to where neither is.

Of windows that pass every limit of the model, within the plan's context, each of the chosen positions has the likeliest
tokens of both, and some of the others, with their log probabilities. Where the package says something else there,
something in it is not what was exported. No torch but in `write_proof`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.request import Workload
from planner.runtimes.base import Progress
from planner.runtimes.source import PackageSource
from records.errors import InputError, MissingError
from supernet.said import DRAWN, TOP, Continuation, Said, split
from supernet.space import Subnet

PROOF = "proof.safetensors"
MOST_BYTES, MOST_SHARE, LEAST_POSITIONS = 8_000_000, 0.02, 256
FAR = 2048  # tokens of a window that are read where no limit of the model lies beyond
POSITION_BYTES = (
    3 * 8 * (TOP + DRAWN) + 16
)  # tokens and log probabilities of both, what the subnet gives the original's
DRAFTING, READING = 0.3, 0.6  # shares of the work, of the text's draft and of what is read in float64
REMAKE = "export it again with `bitfleet export plan.json --out DIR`"


@dataclass(frozen=True)
class Proof:
    """windows: token ids, int32 each; positions int32 `(n,)`, ascending, in the windows one after another; what the
    `subnet` and the `original` model say there; `promised`, what the subnet says of the original's tokens; prompts
    int32 `(m, tokens)` and how both go on; `asked_tokens`, how far a window must reach to be past every limit of the
    model that lies in the package's context, 0 where none does."""

    windows: tuple[NDArray[np.int32], ...]
    positions: NDArray[np.int32]
    subnet: Said
    original: Said
    promised: Said
    prompts: NDArray[np.int32]
    subnet_text: Continuation
    original_text: Continuation
    asked_tokens: int

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        arrays = {
            "tokens": np.concatenate(self.windows),
            "lengths": np.array([len(window) for window in self.windows], np.int32),
            "positions": self.positions,
            "prompts": self.prompts,
            "promised": self.promised.log_probs,
            "promised_rest": self.promised.rest,
            "asked_tokens": np.array([self.asked_tokens], np.int32),
            **self.subnet.arrays("subnet"),
            **self.original.arrays("original"),
            **self.subnet_text.arrays("subnet_text"),
            **self.original_text.arrays("original_text"),
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Proof:
        """InputError where the file is no proof; MissingError where there is none."""
        arrays = read_arrays(path)
        try:
            proof = cls(
                tuple(split(arrays["tokens"], arrays["lengths"])),
                arrays["positions"],
                Said.of("subnet", arrays),
                Said.of("original", arrays),
                Said(arrays["original.ids"], arrays["promised"], arrays["promised_rest"]),
                arrays["prompts"],
                Continuation.of("subnet_text", arrays),
                Continuation.of("original_text", arrays),
                int(arrays["asked_tokens"][0]),
            )
            proof._check()
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise InputError(f"{path} is no proof of this version ({error}); {REMAKE}") from None
        return proof

    def planned(self, at: Any) -> NDArray[np.float64]:
        """KL in nats from the original model to the subnet at these of the positions."""
        return self.original.at(at).kl(self.promised.log_probs[at], self.promised.rest[at])

    def missed(self, done: int) -> str:
        """Why the first `done` positions, one at least, are too few to hold a package by, or empty where they are not.

        The long window is the last. Some of it must be read, as far as past the model's limits.
        """
        starts = np.cumsum([0, *map(len, self.windows)])
        read = self.positions[:done]
        windows = np.searchsorted(starts, read, side="right") - 1
        if done < len(self.positions) and windows[-1] < len(self.windows) - 1:
            return "none of the long window"
        reached = int((read - starts[windows]).max()) + 1
        if reached < self.asked_tokens:
            return f"{reached} tokens far, a limit of the model asks for {self.asked_tokens}"
        return ""

    def _check(self) -> None:
        tokens, n = sum(len(window) for window in self.windows), len(self.positions)
        texts = (*self.windows, self.prompts, self.subnet.ids, self.original.ids, self.subnet_text.tokens)
        for ids in texts:
            if ids.dtype != np.int32 or (ids.size and ids.min() < 0):
                raise ValueError("tokens are numbers of at least 0")
        if not n or n > tokens or not (np.diff(self.positions) > 0).all() or self.positions[0] < 0:
            raise ValueError("positions ascend within the windows")
        if self.positions[-1] >= tokens or min(map(len, self.windows)) < 1:
            raise ValueError("positions ascend within the windows")
        for said in (self.subnet, self.original, self.promised):
            shape = (n, min(TOP, said.ids.shape[1]) if said.ids.shape[1] <= TOP else TOP + DRAWN)
            if said.ids.shape != shape or said.log_probs.shape != shape or said.rest.shape != (n,):
                raise ValueError(f"{shape} tokens are named")
            if not (np.isfinite(said.log_probs).all() and (said.log_probs <= 1e-4).all()):
                raise ValueError("log probabilities are finite and at most 0")
            if not ((said.rest >= 0) & (said.rest <= 1.0001)).all():
                raise ValueError("probabilities are from 0 to 1")
        if self.subnet_text.tokens.shape[:1] != self.prompts.shape[:1]:
            raise ValueError("one continuation a prompt")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise MissingError(f"no such file: {path}; {REMAKE}")
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); {REMAKE}") from None


def write_proof(
    files: PackageSource,
    subnet: Subnet,
    workload: Workload,
    package_bytes: int,
    path: Path,
    progress: Progress | None = None,
) -> None:
    """Write the proof of a package of `package_bytes`: what `files`' full model said, what the subnet says of it now.

    In float64, rounded to steps (`supernet.said`): the subnet says the same whatever computes it.

    At most MOST_BYTES and MOST_SHARE of the package, but LEAST_POSITIONS positions. Torch is imported here.
    """
    import torch

    from supernet import evidence
    from supernet.dense import dense
    from supernet.exact import in_float64

    report = progress or (lambda what, share: None)
    known = files.evidence()
    model = files.subnet_model(subnet)
    asked = max((limit + 1 for limit in evidence.limits(model, files.spec) if limit < workload.context), default=0)
    far = min(workload.context, max(FAR, asked + evidence.PAST))
    windows = [torch.from_numpy(window[:far]).long() for window in split(known["tokens"], known["lengths"])]
    lengths = [len(window) for window in windows]
    prompts, text = known["prompts"], Continuation.of("continued", known)
    new = max(0, min(text.tokens.shape[1], workload.context - prompts.shape[1]))
    most = int(min(MOST_BYTES, MOST_SHARE * package_bytes) / POSITION_BYTES)
    chosen = spread(sum(lengths), max(LEAST_POSITIONS, most))
    original = Said.of("model", known).at(_in_whole(chosen, lengths, known["lengths"]))
    following = torch.from_numpy(prompts).long()
    with dense(model):  # and in float32: a pass for each token takes twice as long in float64
        draft = evidence.continues(
            model, following, new, lambda what, done, total: report(what, DRAFTING * done / total)
        )
    with in_float64(model, files.rotaries(), max(*lengths, prompts.shape[1] + new)):
        read = evidence.hidden(
            model, windows, progress=lambda what, done, total: report(what, DRAFTING + READING * done / total)
        )
        said, promised = evidence.says(model, torch.cat(read)[torch.from_numpy(chosen).long()], original.ids, draw=True)
        continued = evidence.corrected(model, following, draft)
    Proof(
        tuple(window.numpy().astype(np.int32) for window in windows),
        chosen,
        said,
        original,
        promised,
        prompts,
        continued,
        Continuation(text.tokens[:, :new], text.margins[:, :new]),
        asked,
    ).save(path)


def spread(count: int, most: int) -> NDArray[np.int32]:
    """At most `most` of `count` positions, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int32))


def _in_whole(positions: NDArray[np.int32], lengths: list[int], whole: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where `positions` in windows cut to `lengths` are in the whole windows, one after another."""
    starts, cut = np.cumsum([0, *whole[:-1]]), np.cumsum([0, *lengths])
    window = np.searchsorted(cut, positions, side="right") - 1
    return np.asarray(positions - cut[window] + starts[window], np.int64)
