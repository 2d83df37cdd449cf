"""What llama.cpp does with a package, each time in a fresh process: as `Engine` asks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from planner.chat import Messages
from planner.runtimes.asking import Asking, answers
from planner.runtimes.caches import FLOAT16
from planner.runtimes.child import Worker, patience
from planner.runtimes.llamacpp.installed import library
from planner.runtimes.llamacpp.serving import CHUNK_TOKENS, Serving
from planner.runtimes.spoken import Spoken, prompt_ids, spoken
from planner.tokens import Tokenization

WORKER = Worker(Path(__file__).with_name("worker.py"), ("numpy",), "llama.cpp")


def spoken_here(folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
    """As `PackageFormat.spoken`: what `generate` makes of texts and chats."""
    return spoken(folder, texts, chats, list(Serving.load(folder).stop_ids))


def spoken_by_others(folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
    """The same with the tokens of llama.cpp's own tokenizer. Its C interface renders no templates of Jinja: those are
    taken to be rendered as here, by the programs around it."""
    ask = partial(WORKER.ask, library=library())
    return spoken_here(folder, [], chats)._replace(ids=answers(ask, "encoded", folder, texts))


def generate(folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
    """Greedy answer to one user message, in the model's chat format where it has one.

    Text becomes tokens by the model's own tokenizer, so the answer is the model's also where llama.cpp's differs.
    """
    tokenization, serving = Tokenization(folder), Serving.load(folder)
    ids = prompt_ids(folder, tokenization, prompt, serving.context)
    return tokenization.stream(_answer(folder, serving, ids, min(max_tokens, serving.context - len(ids))))


def _answer(folder: Path, serving: Serving, ids: list[int], new_tokens: int) -> Iterator[int]:
    asked = {"ids": ids, "new_tokens": new_tokens, "stops": serving.stop_ids}
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        given = {"library": library(), "settings": settings(serving), **asked}
        for line in WORKER.lines("generate", folder, Path(scratch), **given):
            yield int(line)


def settings(serving: Serving, unrounded: bool = False) -> dict[str, Any]:
    """How a package's context is made, in the words of capi.Context; `unrounded` keeps keys and values as floats."""
    threads = serving.threads or len(os.sched_getaffinity(0))
    return {"threads": threads, "kv_type": FLOAT16.name if unrounded else serving.kv_type, "chunk": CHUNK_TOKENS}


def _ask(task: str, folder: Path, scratch: Path, seconds: float, unrounded: bool = False, **arguments: Any) -> Any:
    given = {"library": library(), "settings": settings(Serving.load(folder), unrounded), **arguments}
    return WORKER.ask(task, folder, scratch, seconds, **given)


def picking_ms(folder: Path, repeats: int = 20) -> float:
    """What picking the likeliest token takes, of the vocabulary of the model in `folder`."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        return float(_ask("picking", folder, Path(scratch), patience(0), repeats=repeats))


def _stops(folder: Path) -> dict[str, Any]:
    return {"stops": Serving.load(folder).stop_ids}


ASKING = Asking(_ask, "context", _stops)
measure, logits, log_probs, continued = ASKING.measure, ASKING.logits, ASKING.log_probs, ASKING.continued
