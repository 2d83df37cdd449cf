"""What subnets are measured on: the texts that a supernet keeps, and texts of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.terminal import note
from commands.waiting import progress
from records.cache import cache_dir
from records.errors import MissingError
from records.installed import require_training

if TYPE_CHECKING:
    from torch import Tensor

    from planner.decide import CacheLoss
    from planner.quality import MeasuredQuality, MeasureTexts, Quality
    from planner.runtimes.base import Runtime
    from planner.runtimes.caches import CacheType
    from supernet.build import Supernet
    from supernet.checkpoint import SupernetFiles
    from supernet.loading import Loaded
    from supernet.reference import Reference
    from supernet.space import Subnet

OWN = 8  # windows of a text of the user's own that finalists are measured on


class OwnText:
    """Windows of a text of the user's own, cut as the supernet's are, and what the full model says of them.

    The full model is needed and read only where something was never measured on the text.
    """

    def __init__(self, files: SupernetFiles, source: str, windows: int = OWN, window_tokens: int | None = None) -> None:
        from supernet.recipe import Recipe
        from supernet.reference import text_name

        check_text(source)
        self.files, self.source, self.count = files, source, windows
        self.window_tokens = window_tokens or Recipe.from_json(files.info["recipe"]).window_tokens
        self.name = text_name(source, files.texts)
        check_full_model(files)

    @cached_property
    def windows(self) -> Tensor:
        from supernet.text import spread_windows

        with progress() as report:
            return spread_windows(self.source, self._tokenizer, self.count, self.window_tokens, 0, report)

    @cached_property
    def first(self) -> int:
        from supernet.text import beginning

        return len(beginning(self._tokenizer))

    @cached_property
    def digest(self) -> str:
        from supernet.reference import digest

        return digest(self.windows, self.first)

    @cached_property
    def _tokenizer(self) -> Any:
        from planner.tokens import model_tokenizer

        return model_tokenizer(self.files.model_dir, self.files.trusted)

    def reference(self, trust_remote_code: bool = False) -> Reference:
        """Read the full model again and ask it; InputError where it is another by now."""
        _ = self.windows  # a text that is too short is said before the model is read
        with progress():
            return self.said_by(full_model(self.files, trust_remote_code).model)

    def said_by(self, model: Any) -> Reference:
        from supernet.reference import Reference

        with progress() as report:
            return Reference.of(model, self.windows, report, self.first, self.source)


def full_model(files: SupernetFiles, trust: bool) -> Loaded:
    """The model that the supernet was made from, read again; InputError where it is another by now."""
    from supernet.loading import load_model
    from supernet.prepared import check_same

    source = files.info["source"]
    loaded = load_model(source, trust_remote_code=trust)
    check_same(loaded.model, files, source)
    return loaded


def check_text(source: str) -> None:
    """InputError before anything else where a text cannot be read."""
    from supernet.text import check_source

    check_source(source)


def check_full_model(
    files: SupernetFiles,
    what: str = "text of your own",
    otherwise: str = ", or train with --eval FILE, which keeps what the full model says of a text",
) -> None:
    """MissingError where the model that the supernet was made from is known to be gone."""
    source = files.info["source"]
    if Path(source).is_absolute() and not Path(source).exists():
        raise MissingError(f"{what} needs the full model, and {source} is gone; put it back{otherwise}")


def measured_quality(
    files: SupernetFiles, text: str | None = None, trust: bool = False, load: Callable[[], Supernet] | None = None
) -> MeasuredQuality:
    """Measures subnets on the texts that the supernet keeps and on one of the user's own, loading weights only where a
    subnet was never measured on one of them; with `load`, where others need them too."""
    from planner.quality import MeasuredQuality

    digests = {name: about["digest"] for name, about in files.texts.items()}
    own = None if text is None else OwnText(files, text)
    if own is not None and own.digest not in digests.values():
        digests[own.name] = own.digest
    place, spare = _places(files)
    measure = measured_on_texts(files, own, trust, load or cache(files.load))
    return MeasuredQuality(place, files.fingerprint, digests, measure, spare)


def measured_on_texts(
    files: SupernetFiles, own: OwnText | None, trust: bool, supernet: Callable[[], Supernet], what: str = ""
) -> MeasureTexts:
    """Measures subnets of `supernet` on texts that `files` keep, and on the user's `own`, by their names."""
    references = cache(files.references)  # once, however many lots there are

    def measure(subnets: Sequence[Subnet], texts: Sequence[str]) -> list[Mapping[str, Quality]]:
        require_training()
        import torch

        from supernet.evaluate import evaluate_texts
        from supernet.model import compute_dtype

        finalists = "1 finalist loses" if len(subnets) == 1 else f"{len(subnets)} finalists lose"
        note(f"measuring what {what or finalists} on {', '.join(texts)}")
        known = references()
        wanted = {name: known[name] if name in known or own is None else own.reference(trust) for name in texts}
        with progress() as report:
            dtype = compute_dtype(torch.device("cpu"))
            found = evaluate_texts(supernet(), subnets, wanted, report, dtype)
        return [
            {name: quality.to_json() | {"text": wanted[name].text} for name, quality in by_text.items()}
            for by_text in found
        ]

    return measure


def measured_caches(files: SupernetFiles, load: Callable[[], Supernet]) -> CacheLoss:
    """What keys and values lose by how a runtime keeps them, measured once for each way: on the first text that the
    supernet keeps, with its largest uniform subnet, from what that says with keys and values as floats."""
    from planner.quality import MeasuredQuality

    name, about = next(iter(files.texts.items()))
    largest, (place, spare) = files.space.uniform(files.spec, max(files.space.bits(files.spec))), _places(files)

    @cache
    def said() -> Reference:
        """Of the largest subnet, which is active from then on."""
        from supernet.keys_values import with_floats

        return with_floats(load(), largest, files.references()[name])

    def loss(runtime: Runtime, kind: CacheType) -> float:
        def measure(subnets: Sequence[Subnet], texts: Sequence[str]) -> list[Mapping[str, Quality]]:
            require_training()
            from supernet.keys_values import cache_loss
            from supernet.said import split

            note(f"measuring what {kind.name} keys and values lose on {name}")
            known, floats = files.evidence(), said()
            windows = list(split(known["tokens"], known["lengths"]))
            kept = runtime.kept(kind, files.spec, load().model, windows)
            with progress() as report:
                found = cache_loss(load(), largest, floats, kept, report)
            return [{name: found.to_json() | {"text": floats.text}}]

        texts = {name: f"{about['digest']}/{runtime.name}/{kind.name}"}
        quality = MeasuredQuality(place, files.fingerprint, texts, measure, spare)
        return float(quality([largest])[0]["kl"])

    return loss


def _places(files: SupernetFiles) -> tuple[Path, Path]:
    """Where evaluations are kept: the supernet may be one that can only be read."""
    from planner.quality import EVALUATIONS_FILE

    return files.path / EVALUATIONS_FILE, cache_dir() / "evaluations" / f"{files.fingerprint}.json"


class FirstWindows(OwnText):
    """The first windows of a text, so that what was measured elsewhere on them can be compared; with `second_half` what
    is measured of each begins in its middle, as llama-perplexity does it."""

    def __init__(
        self, files: SupernetFiles, source: str, windows: int, window_tokens: int, second_half: bool = False
    ) -> None:
        super().__init__(files, source, windows, window_tokens)
        self.second_half = second_half

    @classmethod
    def references(cls, texts: Sequence[FirstWindows], trust: bool) -> dict[str, Reference]:
        """What the full model says of each text, by their names; it is read once."""
        for text in texts:
            _ = text.windows
        model = full_model(texts[0].files, trust).model
        return {text.name: text.said_by(model) for text in texts}

    @cached_property
    def first(self) -> int:
        beginning = super().first
        return max(beginning, self.window_tokens // 2) if self.second_half else beginning

    @cached_property
    def windows(self) -> Tensor:
        from supernet.text import read_windows

        return read_windows(self.source, self._tokenizer, self.count, self.window_tokens)
