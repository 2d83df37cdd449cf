"""What the full model says of long windows, kept with its supernet: what a package is held to where neither is.

    proof.safetensors   tokens, lengths: windows one after another, short ones first, each as a text begins
                        model.ids, .log_probs, .rest: what the full model says at every position (`supernet.said.Said`)
                        prompts; continued.tokens, .margins: how it goes on greedily

The last window is long: past every sliding window and past the length that the rotary embedding was trained on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from records.errors import InputError
from supernet.absent import present
from supernet.build import Supernet, assemble
from supernet.files import open_tensors
from supernet.grids import QuantizedWeight
from supernet.linear import SuperEmbedding, SuperLinear, TiedHead
from supernet.model import capped, hidden_states
from supernet.progress import Progress, say, silent
from supernet.said import DRAWN, REST_STEPS, STEPS, TOP, Continuation, Said
from supernet.space import Subnet
from supernet.spec import ModelSpec

PROOF = "proof.safetensors"
ARRAYS = ("tokens", "lengths", "prompts", "model.ids", "model.log_probs", "model.rest", "continued.tokens",
          "continued.margins")  # fmt: skip
SHORT, EACH = 256, 4  # tokens of a short window; how many there are of each kind of text
LONG, MOST = 4096, 8448  # tokens of the long window, and at most where a limit lies beyond
PAST = 128  # tokens that are read beyond a limit
PROMPT, NEW = 16, 32
SECONDS = 90.0  # the long window is cut where reading it would take longer
ROWS, POSITIONS = 8192, 256  # of the head, and of a text, that are computed together


def write_evidence(
    path: Path, model: Any, tokenizer: Any, held_out: Tensor, spec: ModelSpec, seconds: float = SECONDS,
    progress: Progress = silent,
) -> None:  # fmt: skip
    """Write `path`: what the full `model`, float32, says of held-out windows and of the manual of Python."""
    from safetensors.numpy import save_file

    from records.atomic import replacing

    windows = [
        *held_out[:EACH, :SHORT],
        *manual(tokenizer, EACH, SHORT, spec),
        *manual(tokenizer, 1, long(model, spec), spec),
    ]
    read = hidden(model, windows, seconds, progress)
    lengths = [len(part) for part in read]
    tokens = torch.cat([window[:length] for window, length in zip(windows, lengths, strict=True)])
    said, _ = says(model, torch.cat(read), draw=True, progress=progress)
    prompts = torch.stack([window[:PROMPT] for window in windows[: 2 * EACH] if len(window) >= PROMPT][::2][:EACH])
    continued = continues(model, prompts, min(NEW, spec.max_context - prompts.shape[1]), progress)
    arrays = {
        "tokens": tokens.numpy().astype(np.int32),
        "lengths": np.array(lengths, np.int32),
        "prompts": prompts.numpy().astype(np.int32),
        **said.arrays("model"),
        **continued.arrays("continued"),
    }
    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def read_evidence(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of `write_evidence`, by name. InputError where the file is damaged or something else."""
    with open_tensors(path) as file:
        found = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    missing = [name for name in ARRAYS if name not in found]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; train the supernet again or copy it again")
    return found


def proof_tokens(model: Any, spec: ModelSpec) -> int:
    """Tokens that `write_evidence` reads where the time allows."""
    return 2 * EACH * min(SHORT, spec.max_context) + long(model, spec)


def long(model: Any, spec: ModelSpec) -> int:
    """Tokens of the long window: what most plans serve, or past the last limit of the model."""
    past = [limit + PAST for limit in limits(model, spec)]
    return min(spec.max_context, MOST, max([LONG, *past]))


def limits(model: Any, spec: ModelSpec) -> list[int]:
    """Tokens after which something in the model changes: sliding windows, and lengths that a rope was trained on."""
    ropes = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [ropes, *(kind for kind in ropes.values() if isinstance(kind, dict))]
    trained = [kind.get("original_max_position_embeddings") or 0 for kind in kinds]
    return [window for window in spec.windows if window is not None] + [int(length) for length in trained if length]


def manual(tokenizer: Any, count: int, window_tokens: int, spec: ModelSpec) -> list[Tensor]:
    """Windows from all over the manual of the Python language, each as the tokenizer begins a text."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    length = 12 * window_tokens
    starts = [(len(text) - length) * number // max(count, 1) for number in range(count)]
    found = [tokenizer(text[max(start, 0) :][:length])["input_ids"][:window_tokens] for start in starts]
    return [torch.tensor(ids)[: spec.max_context] for ids in found]


@torch.no_grad()
def hidden(
    model: Any, windows: Sequence[Tensor], seconds: float = math.inf, progress: Progress = silent
) -> list[Tensor]:
    """What the head reads at each position of each window, `(tokens, hidden_size)`. A window that would take longer
    than the `seconds` left is cut to its beginning, by the pace of those before it, which is said; one token at least
    is read. Where the time is not limited, windows of one length after another are read together."""
    started, done, read = time.perf_counter(), 0, list[Tensor]()
    groups = [list(group) for _, group in groupby(windows, len)] if math.isinf(seconds) else [[one] for one in windows]
    for group in groups:
        passed, length = time.perf_counter() - started, len(group[0])
        room = length if not done else max(1, done / passed * (seconds - passed))
        part = torch.stack(group)[:, : int(min(length, room))]
        read += hidden_states(model, part.to(model.device)).float()
        done += part.numel()
        progress("proof", len(read), len(windows))
    whole = sum(map(len, windows))
    if done < whole:
        say(f"the proof holds a package at {done} of {whole} tokens: {seconds:.0f} s are not enough to read the others")
    return read


@torch.no_grad()
def says(
    model: Any, read: Tensor, wanted: NDArray[np.int32] | None = None, draw: bool = False, progress: Progress = silent
) -> tuple[Said, Said]:
    """What the head makes of `read` `(n, hidden_size)`: of the likeliest tokens, with some of the others to `draw` or
    without, and of the `wanted` ids `(n, k)`.

    A stretch of the vocabulary at a time: neither all logits nor a dequantized head are ever in memory. Logits count in
    steps (`supernet.said`), and of tokens of the same step the one of the smaller id comes first: what is kept of a
    vocabulary, and in which order, does not depend on the last bits of a sum.
    """
    rows, vocabulary, bias = _head(model)
    asked = torch.zeros(len(read), 0, dtype=torch.long) if wanted is None else torch.from_numpy(wanted).long()
    asked = asked.to(read.device)
    total = read.new_full((len(read),), -torch.inf, dtype=torch.float64)
    found = total.new_zeros(asked.shape)
    top, keys = total.new_zeros(len(read), 0), asked.new_zeros(len(read), 0)
    for start in range(0, vocabulary, ROWS):
        stop = min(start + ROWS, vocabulary)
        weight, part = rows(start, stop), None if bias is None else bias[start:stop]
        after = torch.arange(vocabulary - 1 - start, vocabulary - 1 - stop, -1, device=read.device)
        best = []
        for at in range(0, len(read), POSITIONS):
            here = slice(at, at + POSITIONS)
            logits = capped(model, nn.functional.linear(read[here], weight, part)).double()
            total[here] = torch.logaddexp(total[here], logits.logsumexp(-1))
            inside = (asked[here] >= start) & (asked[here] < stop)
            values = logits.gather(1, (asked[here] - start).clamp(0, stop - start - 1))
            found[here] = torch.where(inside, values, found[here])
            ordered = _steps(logits).long() * vocabulary + after  # by steps, then by how many ids come after
            kept = ordered.topk(min(TOP, stop - start))
            best.append((kept.values, logits.gather(1, kept.indices)))
        together = torch.cat([keys, torch.cat([ordered for ordered, _ in best])], 1)
        kept = together.topk(min(TOP, together.shape[1]))
        keys = kept.values
        top = torch.cat([top, torch.cat([values for _, values in best])], 1).gather(1, kept.indices)
        progress("proof, likeliest tokens", stop, vocabulary)
    ids = vocabulary - 1 - keys % vocabulary
    if draw and vocabulary > TOP:
        others, logits = _drawn(model, read, ids, top, total, progress)
        ids, top = torch.cat([ids, others], 1), torch.cat([top, logits], 1)
    return _said(ids, top, total), _said(asked, found, total)


def _drawn(
    model: Any, read: Tensor, likeliest: Tensor, top: Tensor, total: Tensor, progress: Progress
) -> tuple[Tensor, Tensor]:
    """DRAWN tokens `(n, drawn)` of all but the `likeliest` `(n, k)`, whose logits are `top`, and their logits: one of
    each DRAWN-th part of their probability, by a seed of its own. `total` is as in `_said`."""
    rows, vocabulary, bias = _head(model)
    rest = 1 - (top - total[:, None]).exp().sum(-1)
    parts = torch.rand(len(read), DRAWN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = (parts + torch.arange(DRAWN)).to(read.device) / DRAWN * rest[:, None]
    ids, found = likeliest[:, -1:].repeat(1, DRAWN), top[:, -1:].repeat(1, DRAWN)  # where nothing is left to draw from
    passed = total.new_zeros(len(read), 1)
    for start in range(0, vocabulary, ROWS):
        stop = min(start + ROWS, vocabulary)
        weight, part = rows(start, stop), None if bias is None else bias[start:stop]
        for at in range(0, len(read), POSITIONS):
            here = slice(at, at + POSITIONS)
            logits = capped(model, nn.functional.linear(read[here], weight, part)).double()
            known = likeliest[here] - start
            probs = (logits - total[here, None]).exp()
            outside = (known < 0) | (known >= stop - start)
            kept = probs.gather(1, known.clamp(0, stop - start - 1)).where(outside, 0)
            sums = probs.scatter(1, known.clamp(0, stop - start - 1), kept).cumsum(1) + passed[here]
            place = torch.searchsorted(sums, wanted[here], right=True)
            inside = (place < stop - start) & (wanted[here] >= passed[here])
            place = place.clamp(max=stop - start - 1)
            ids[here] = torch.where(inside, place + start, ids[here])
            found[here] = torch.where(inside, logits.gather(1, place), found[here])
            passed[here] = sums[:, -1:]
        progress("proof, further tokens", stop, vocabulary)
    return ids, found


def _steps(nats: Tensor) -> Tensor:
    return (nats * STEPS).round()


def _said(ids: Tensor, logits: Tensor, total: Tensor) -> Said:
    """Of the `logits` `(n, k)` of these `ids`; `total` `(n,)` is the logarithm of the sum of all their exponentials."""
    log_probs = ((_steps(logits) - _steps(total)[:, None]) / STEPS).clamp(max=0)
    rest = ((1 - (logits[:, :TOP] - total[:, None]).exp().sum(-1)) * REST_STEPS).round().clamp(min=0) / REST_STEPS
    named, known, others = (part.cpu().numpy() for part in (ids, log_probs, rest))
    return Said(named.astype(np.int32), known.astype(np.float32), others.astype(np.float32))


@torch.no_grad()
def continues(model: Any, prompts: Tensor, new: int, progress: Progress = silent) -> Continuation:
    """How the model goes on after `prompts` `(prompts, tokens)`, taking the likeliest token `new` times."""
    ids, cache = prompts.to(model.device), None
    tokens, margins = [], []
    for number in range(new):
        progress("proof, a text", number, new)
        out = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        said, _ = says(model, out.last_hidden_state[:, -1].float())
        tokens.append(said.ids[:, 0])
        margins.append(_margins(said))
        ids = torch.from_numpy(said.ids[:, :1]).long().to(model.device)
    if not tokens:
        return Continuation(np.zeros((len(prompts), 0), np.int32), np.zeros((len(prompts), 0), np.float32))
    return Continuation(np.stack(tokens, 1), np.stack(margins, 1))


@torch.no_grad()
def corrected(model: Any, prompts: Tensor, draft: Continuation) -> Continuation:
    """`continues` for as many tokens as the `draft` has, which is nearly that: a pass over all tokens, not one for
    each. Where the draft was wrong, the tokens before are right then and that one is known: another pass reads it."""
    guess = draft.tokens
    if not guess.size:
        return draft
    while True:
        ids = torch.cat([prompts, torch.from_numpy(guess[:, :-1]).long()], 1).to(model.device)
        read = hidden_states(model, ids)[:, prompts.shape[1] - 1 :].float()
        said, _ = says(model, read.flatten(0, 1))
        found = said.ids[:, 0].reshape(guess.shape)
        if np.array_equal(found, guess):
            return Continuation(found, _margins(said).reshape(guess.shape))
        guess = found


def _margins(said: Said) -> NDArray[np.float32]:
    return np.asarray(said.log_probs[:, 0] - said.log_probs[:, 1])


def _head(model: Any) -> tuple[Callable[[int, int], Tensor], int, Tensor | None]:
    """Rows `start` to `stop` of the head's matrix in the dtype of its scales, how many there are, and its bias."""
    head = model.get_output_embeddings()
    if isinstance(head, TiedHead):
        weight = head.embedding.stored(head.embedding.choice)
        return lambda start, stop: _dequantized(weight, slice(start, stop)), weight.shape[0], None
    if isinstance(head, SuperLinear):
        weight = head.stored(head.choice)
        return lambda start, stop: _dequantized(weight, slice(start, stop)), weight.shape[0], head.bias
    with present(head):
        table, bias = head.weight.detach(), getattr(head, "bias", None)
    return lambda start, stop: table[start:stop].float(), len(table), None if bias is None else bias.float()


def _dequantized(weight: QuantizedWeight, rows: Any) -> Tensor:
    return weight.rows(rows).dequantize(weight.scale.dtype)


class RowLookup(nn.Module):
    """An embedding that dequantizes the rows that are looked up and no others."""

    def __init__(self, embedding: SuperEmbedding) -> None:
        super().__init__()
        self.quantized = embedding

    def forward(self, ids: Tensor) -> Tensor:
        found, places = ids.unique(return_inverse=True)
        rows = _dequantized(self.quantized.stored(self.quantized.choice), found)[places]
        scale = self.quantized.embed_scale
        return rows if scale is None else rows * scale.to(rows.dtype)


def alone(files: Any, subnet: Subnet) -> Supernet:
    """A supernet in float32 that can be this one subnet of `files` and holds nothing else."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(files.model_dir, trust_remote_code=files.trusted)
    weights = {
        linear.name: {subnet[unit.name].whole: files.stored(linear.name, subnet[unit.name].whole)}
        for unit in files.spec.units
        for linear in unit.linears
    }
    space = files.space.restrict(lambda unit, choice: choice == subnet[unit])
    supernet = assemble(config, files.spec, space, files.float_tensors(), weights, files.trusted)
    supernet.activate(subnet)
    return supernet


def subnet_model(files: Any, subnet: Subnet) -> Any:
    """One subnet of a supernet as a model in float32 that holds packed codes, and one matrix of weights at a time."""
    supernet = alone(files, subnet)
    for unit in files.spec.units:
        for linear in unit.linears:
            matrix = supernet.matrices[linear.name]
            if isinstance(matrix, SuperEmbedding):
                supernet.model.set_submodule(linear.name, RowLookup(matrix))
    return supernet.model
