"""Whether a package answers as what it was made from: by its proof alone, by the supernet, by the original model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.bands import KL_LIMIT
from planner.package import Package
from planner.plan import Plan
from planner.proof import PROOF, Proof
from planner.rows import BROKEN, HOLDS, Row, row, unchecked
from planner.runtimes.base import Runtime
from planner.runtimes.caches import CacheType
from planner.runtimes.engine import Speaker
from records.errors import InputError
from supernet.said import TOP, Said

if TYPE_CHECKING:
    from supernet.checkpoint import SupernetFiles

SECONDS = 60.0  # of reading the proof's windows, the short ones first
UNREAD = f"none of the proof was read within {SECONDS:.0f} s"
KL_WINDOWS, KL_TOKENS = 4, 128
STOP = -1  # any token that ends a text
# Nats: of two tokens that are so near, a package whose KL holds may take the other. A KL of k is a spread of
# sqrt(2 k) in each log probability, to second order; of two it is sqrt(2) times that, and three times that is rare.
NEAR = round(6 * math.sqrt(KL_LIMIT), 2)
NATS = "nats/token"
NOT_RUN = "bitfleet runs no {} package"
TO_SUBNET, TO_ORIGINAL, TEXT = "KL to the supernet", "KL to the original model", "greedy text"


def from_proof(runtime: Runtime, package: Package) -> Iterator[Row]:
    """KL per token to the subnet and to the original model, the likeliest tokens, and greedy text."""
    if PROOF not in package.files:
        yield unchecked(TO_SUBNET, NATS, KL_LIMIT, f"the package has no {PROOF}; export it again")
        return
    proof, speaker = Proof.load(package.path / PROOF), speaker_of(runtime, package)
    if speaker is None:
        for name in (TO_SUBNET, TO_ORIGINAL):
            yield unchecked(name, NATS, KL_LIMIT, NOT_RUN.format(runtime.name))
        return
    ids = np.concatenate([proof.subnet.ids, proof.original.ids], 1)
    cache, asked = runtime.cache(package.plan.workload), (proof.windows, proof.positions, ids, SECONDS)
    found, likeliest = speaker.log_probs(*asked, unrounded=cache.rounds)
    yield from _divergences(proof, found)
    if cache.rounds:
        found, likeliest = speaker.log_probs(*asked)
        yield from _with_cache(cache, proof, found)
    if not len(found):
        return
    done = slice(len(found))
    share = float((likeliest == proof.original.ids[done, 0]).mean())
    same = float((likeliest == proof.subnet.ids[done, 0]).mean())
    note = f"of positions as the original model; {same:.4f} as the subnet"
    yield Row("likeliest token", "share", None, share, verdict=None, note=note, promises=False)
    for one in _greedy(speaker, proof, runtime.packages.spoken(package.path, [], []).stop_ids):
        excused = cache.rounds and one.verdict == BROKEN  # no plan promises what such a cache answers
        yield replace(one, verdict=None, promises=False) if excused else one


def _divergences(proof: Proof, found: NDArray[np.float32]) -> Iterator[Row]:
    """KL to the subnet and to the original model, which a package's weights are held to."""
    if not len(found):
        for name in (TO_SUBNET, TO_ORIGINAL):
            yield unchecked(name, NATS, KL_LIMIT, UNREAD)
        return
    done, k = slice(len(found)), proof.subnet.ids.shape[1]
    read = f"at {len(found)} positions" + ("" if len(found) == len(proof.positions) else f" of {len(proof.positions)}")
    kl = float(proof.subnet.at(done).kl(found[:, :k]).mean())
    note = f"to its subnet, {read} of the proof"
    yield _reaching(row(TO_SUBNET, NATS, KL_LIMIT, kl, 0.0, note=note), proof, len(found))
    kl, planned = float(proof.original.at(done).kl(found[:, k:]).mean()), float(proof.planned(done).mean())
    note = f"the subnet's is {planned:.4g}"
    yield _reaching(row(TO_ORIGINAL, NATS, planned + KL_LIMIT, kl, 0.0, note=note), proof, len(found))


def _with_cache(cache: CacheType, proof: Proof, found: NDArray[np.float32]) -> Iterator[Row]:
    """The same as the package serves: what its KV cache loses by rounding is in it, and no plan has promised that."""
    done, k = slice(len(found)), proof.subnet.ids.shape[1]
    note = f"as it serves, {cache.bits:g} bits a key or value; where nothing names it they are floats"
    for name, said, columns in (
        (TO_SUBNET, proof.subnet, slice(0, k)),
        (TO_ORIGINAL, proof.original, slice(k, None)),
    ):
        kl = float(said.at(done).kl(found[:, columns]).mean()) if len(found) else None
        yield Row(f"{name}, {cache.name} cache", NATS, None, kl, verdict=None, note=note, promises=False)


def speaker_of(runtime: Runtime, package: Package) -> Speaker | None:
    """What tells what the package says; None where bitfleet runs none of the runtime's."""
    engine = runtime.engine()
    return None if engine is None else engine.speaker(package.path)


def _reaching(found: Row, proof: Proof, done: int) -> Row:
    """What was read too little of, the first `done` positions, may break a promise and cannot keep one."""
    missed = proof.missed(done)
    if not missed or found.verdict == BROKEN:
        return found
    return replace(found, verdict=None, note=f"{found.note}; read {missed}")


def _greedy(speaker: Speaker, proof: Proof, stop_ids: list[int]) -> Iterator[Row]:
    """How many tokens of greedy text are as the subnet's, up to the first that another likely one may stand for.

    Where a package stops is one of them, whichever token it stops at: the subnet must stop there, too.
    """
    new = proof.subnet_text.tokens.shape[1]
    if not new:
        note = "the context has no room for it"
        yield Row(TEXT, "tokens", None, None, verdict=None, note=note, promises=False)
        return
    found, stops = speaker.continued(list(proof.prompts), new), {*stop_ids}
    wanted, agreed, as_original, broken = 0, 0, 0, False
    for number, answer in enumerate(found):
        tokens = [*answer, STOP] if len(answer) < new else answer
        ours, theirs = (
            [STOP if token in stops else token for token in text.tokens[number].tolist()]
            for text in (proof.subnet_text, proof.original_text)
        )
        same = _together(tokens, ours)
        as_original += _together(tokens, theirs)
        agreed += same
        wanted += len(tokens)
        broken |= same < len(tokens) and bool(proof.subnet_text.margins[number, same] > NEAR)
    note = f"as the subnet; {as_original} as the original model"
    if agreed == wanted == len(found):
        note += "; each is a stop at once, of all of them"
    if agreed < wanted:
        note += f"; where it parts, another token was {'not ' if broken else ''}within {NEAR} nats"
    yield Row(TEXT, "tokens", wanted, agreed, verdict=BROKEN if broken else HOLDS, note=note)


def _together(tokens: list[int], others: list[int]) -> int:
    """How many tokens are the same before the first that is not."""
    differ = [a != b for a, b in zip(tokens, others, strict=False)]
    return differ.index(True) if True in differ else len(differ)


def against_supernet(runtime: Runtime, package: Package, source: str, trust_remote_code: bool = False) -> Row:
    """KL per token from the supernet's subnet in float32 to the package, whole distributions, on its held-out text."""
    from supernet.checkpoint import open_supernet

    name = f"{TO_SUBNET}, in full"
    try:
        files = package.plan.opened(open_supernet(source, trust_remote_code=trust_remote_code))
    except InputError as error:
        return unchecked(name, NATS, KL_LIMIT, f"{error}")
    except OSError as error:
        return unchecked(name, NATS, KL_LIMIT, f"{source} cannot be read: {error.strerror}")
    if files.fingerprint != package.plan.fingerprint:
        return unchecked(name, NATS, KL_LIMIT, f"{source} is not the supernet of this package, or has changed since")
    speaker = speaker_of(runtime, package)
    if speaker is None:
        return unchecked(name, NATS, KL_LIMIT, NOT_RUN.format(runtime.name))
    kl, tokens = divergence(speaker, package.plan, files)
    return row(name, NATS, KL_LIMIT, kl, 0.0, note=f"over {tokens} tokens")


def divergence(speaker: Speaker, plan: Plan, files: SupernetFiles) -> tuple[float, int]:
    """(KL per token in nats, tokens) from the plan's subnet to its package."""
    import torch

    files.check_hashes()
    windows = files.reference().windows[:KL_WINDOWS, : min(KL_TOKENS, plan.workload.context)]
    model = files.subnet_model(plan.subnet)
    packaged = speaker.logits(windows.numpy(), unrounded=True)
    total = 0.0
    for window, theirs in zip(windows, packaged, strict=True):
        with torch.no_grad():
            ours = model(window[None]).logits[0].double().log_softmax(-1)
        difference = ours - torch.from_numpy(theirs).double().log_softmax(-1)
        total += float((ours.exp() * difference).sum())
    return total / windows.numel(), windows.numel()


def beside(runtime: Runtime, package: Package, other_runtime: Runtime, other: Package) -> Row:
    """KL per token from a package to another one of the same subnet, at the positions of the proof.

    Both say their own of the tokens that the proof keeps; those beyond the likeliest were drawn from the subnet, which
    both are near.
    """
    name = f"KL to {other.path.name}"
    speakers = speaker_of(runtime, package), speaker_of(other_runtime, other)
    for one, speaker in zip((runtime, other_runtime), speakers, strict=True):
        if speaker is None:
            return unchecked(name, NATS, None, NOT_RUN.format(one.name))
    if (package.plan.fingerprint, package.plan.subnet) != (other.plan.fingerprint, other.plan.subnet):
        raise InputError(f"{other.path} is of another subnet than {package.path}; compare packages of one plan")
    proof = Proof.load(package.path / PROOF)
    asked = proof.windows, proof.positions, proof.subnet.ids, SECONDS
    ours, theirs = (speaker.log_probs(*asked)[0] for speaker in speakers if speaker is not None)
    count = min(len(ours), len(theirs))
    if not count:
        return unchecked(name, NATS, None, UNREAD)
    rest = 1 - np.exp(ours[:count, :TOP].astype(np.float64)).sum(-1)
    said = Said(proof.subnet.ids[:count], ours[:count], rest.astype(np.float32))
    kl = float(said.kl(theirs[:count]).mean())
    return Row(name, NATS, None, kl, verdict=None, note=f"at {count} positions of the proof", promises=False)


def against_model(runtime: Runtime, package: Package, source: str, trust_remote_code: bool = False) -> Iterator[Row]:
    """Whether the model that the supernet was made from is this one, read anew, and how far the package is from it."""
    import torch

    from supernet.evidence import hidden, says
    from supernet.loading import load_model

    name = f"the proof's original model is {source}"
    if PROOF not in package.files:
        yield unchecked(name, NATS, KL_LIMIT, f"the package has no {PROOF}; export it again")
        return
    proof = Proof.load(package.path / PROOF)
    model = load_model(source, trust_remote_code).model
    read = hidden(model, [torch.from_numpy(window).long() for window in proof.windows])
    said, theirs = says(model, torch.cat(read)[torch.from_numpy(proof.positions).long()], proof.original.ids)
    kl = float(proof.original.kl(theirs.log_probs, theirs.rest).mean())
    yield row(name, NATS, KL_LIMIT, kl, 0.0, note=f"KL at {len(said)} positions of the proof, read anew")
    speaker = speaker_of(runtime, package)
    if speaker is None:
        yield unchecked(f"KL to {source}", NATS, KL_LIMIT, NOT_RUN.format(runtime.name))
        return
    found, _ = speaker.log_probs(proof.windows, proof.positions, said.ids, SECONDS, unrounded=True)
    if not len(found):
        yield unchecked(f"KL to {source}", NATS, KL_LIMIT, UNREAD)
        return
    done = slice(len(found))
    planned = float(proof.planned(done).mean())
    note = f"the subnet's is {planned:.4g} by the proof"
    kl = float(said.at(done).kl(found).mean())
    yield _reaching(row(f"KL to {source}", NATS, planned + KL_LIMIT, kl, 0.0, note=note), proof, len(found))
