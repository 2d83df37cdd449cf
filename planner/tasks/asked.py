"""What lm-eval asks of a model, as what a speaker tells: the model's own tokenizer makes tokens of every text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray

from planner.runtimes.child import TOKEN_S
from planner.runtimes.engine import Ids
from records.errors import InputError, SystemFailure

LOT_TOKENS = 2**13  # that are asked for at a time
FIRST_TOKENS = 32  # of an answer, before it is looked at; then twice as many, and so on
LOADING_S = 60.0

Pair = tuple[Any, list[int], list[int]]  # whatever it is of, the tokens before, those that are asked for
Report = Callable[[str, int, int], None]


class Says(Protocol):
    """The part of `planner.runtimes.engine.Speaker` that tasks need."""

    def log_probs(
        self, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]: ...

    def continued(self, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]: ...


class Asked(TemplateLM):
    """A model as lm-eval knows one. `tokenizer` is transformers', `first` are the tokens that it puts before a text,
    `stops` those that end one; what is longer than `context` tokens loses its beginning, and is counted in `cut`."""

    def __init__(
        self, says: Says, tokenizer: Any, first: Sequence[int], stops: Sequence[int], context: int, report: Report
    ) -> None:
        super().__init__()
        self.says, self.tokenizer, self.first, self.stops = says, tokenizer, list(first), list(stops)
        self.context, self.report, self.cut = context, report, 0

    @property
    def eot_token_id(self) -> int:
        return self.stops[0]

    @property
    def prefix_token_id(self) -> int:
        return self.first[-1] if self.first else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids = list(self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"])
        begun = ids[: len(self.first)] == self.first  # as a rendered chat is
        return ids if begun or add_special_tokens is False else self.first + ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=True))  # there is one progress

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **kwargs: Any) -> list[tuple[float, bool]]:
        """Requests with the same tokens before their last one are read once."""
        windows: dict[tuple[int, ...], list[int]] = {}
        asked = []
        for number, (_, before, wanted) in enumerate(requests):
            if not wanted:
                raise InputError("a task must ask for a token or more after each context, one asks for none")
            self.cut += len(before) + len(wanted) > self.context + 1
            whole = (before + wanted)[-(self.context + 1) :]
            asked.append(wanted[-(len(whole) - 1) :])
            windows.setdefault(tuple(whole[:-1]), []).append(number)
        found: dict[int, tuple[float, bool]] = {}
        for lot in lots(sorted(windows, key=len)):
            found |= self._said([(window, [(n, asked[n]) for n in windows[window]]) for window in lot])
            self.report("read", len(found), len(requests))
        return [found[number] for number in range(len(requests))]

    def _said(
        self, lot: Sequence[tuple[tuple[int, ...], list[tuple[int, list[int]]]]]
    ) -> dict[int, tuple[float, bool]]:
        """Of each numbered request, the log probability of its tokens, the last of which follows its window, and
        whether each of them is the likeliest."""
        wide = max(len(requests) for _, requests in lot)
        positions, ids, places, start = list[int](), list[list[int]](), dict[int, slice](), 0
        columns: dict[int, int] = {}
        for window, requests in lot:
            longest = max(len(wanted) for _, wanted in requests)
            stop = len(positions) + longest
            positions += range(start + len(window) - longest, start + len(window))
            rows = np.zeros((longest, wide), np.int64)
            for column, (number, wanted) in enumerate(requests):
                rows[longest - len(wanted) :, column] = wanted
                places[number], columns[number] = slice(stop - len(wanted), stop), column
            ids += rows.tolist()
            start += len(window)
        tokens = [np.array(window, np.int64) for window, _ in lot]
        seconds = LOADING_S + TOKEN_S * start
        said, likeliest = self.says.log_probs(tokens, np.array(positions), np.array(ids), seconds)
        if len(said) < len(positions):
            raise SystemFailure(f"{start} tokens must be read within {seconds:.0f} s, they were not; give --limit N")
        asked = np.array(ids)
        return {
            number: (
                float(said[place, columns[number]].sum(dtype=np.float64)),
                bool((likeliest[place] == asked[place, columns[number]]).all()),
            )
            for number, place in places.items()
        }

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs: list[Pair] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False), prefix_token=self.prefix_token_id,
                max_seq_len=self.context, context_len=1,
            )  # fmt: skip
            pairs += [(number, *pair) for pair in map(make_disjoint_window, rolling)]
        sums = [0.0] * len(requests)
        for (number, _, _), (said, _) in zip(pairs, self._loglikelihood_tokens(pairs), strict=True):
            sums[number] += said
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = [Answer.asked(self, *request.args) for request in requests]
        tokens, left = FIRST_TOKENS, [answer for answer in answers if answer.wants]
        while left:
            for lot in lots(left, Answer.tokens):
                new = min(tokens, max(answer.wants for answer in lot))
                prompts = [np.array(answer.prompt + answer.found, np.int64) for answer in lot]
                for answer, more in zip(lot, self.says.continued(prompts, new), strict=True):
                    answer.add(more, new)
                left = [answer for answer in left if answer.wants]
                self.report("answer", len(answers) - len(left), len(answers))
            tokens *= 2
        return [answer.text for answer in answers]


class Answer:
    """The tokens of an answer so far, at most `most`, which ends before the first of the texts `until`."""

    def __init__(self, prompt: list[int], most: int, until: Sequence[str], model: Asked) -> None:
        self.prompt, self.most, self.until, self.model = prompt, most, until, model
        self.found: list[int] = []
        self.text, self.done = "", False

    @classmethod
    def asked(cls, model: Asked, context: str, options: dict[str, Any]) -> Answer:
        """As lm-eval asks, of the likeliest tokens."""
        wanted = normalize_gen_kwargs(options)
        ids = model.tok_encode(context)
        most = min(wanted["max_gen_toks"], model.context - 1)
        model.cut += len(ids) > model.context - most
        return cls(ids[-(model.context - most) :], most, wanted["until"], model)

    def tokens(self) -> int:
        return len(self.prompt) + self.most

    @property
    def wants(self) -> int:
        """How many more tokens it may have."""
        return 0 if self.done else self.most - len(self.found)

    def add(self, more: list[int], asked: int) -> None:
        ended = len(more) < asked or (bool(more) and more[-1] in self.model.stops)
        self.found = (self.found + more)[: self.most]
        kept = self.found[:-1] if self.found and self.found[-1] in self.model.stops else self.found
        whole = str(self.model.tokenizer.decode(kept, skip_special_tokens=True))
        places = [whole.find(text) for text in self.until if text in whole]
        self.text, self.done = whole[: min(places, default=len(whole))], ended or bool(places)


def lots(windows: Sequence[Any], size: Callable[[Any], int] = len) -> list[list[Any]]:
    """In order, as many together as have `LOT_TOKENS`, or one."""
    found: list[list[Any]] = []
    tokens = LOT_TOKENS
    for window in windows:
        tokens += size(window)
        if tokens > LOT_TOKENS:
            found.append([])
            tokens = size(window)
        found[-1].append(window)
    return found
