"""Training the scales of a plan for it alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import click

from commands.measuring import OwnText, check_full_model, check_text, full_model, measured_on_texts
from commands.terminal import note
from commands.waiting import progress
from records.errors import InputError
from records.installed import require_training
from records.reading import as_record, read_json
from supernet.checkpoint import TUNED

if TYPE_CHECKING:
    from planner.pipeline import Own, Tune
    from planner.plan import Plan
    from planner.quality import Measured, Quality
    from supernet.checkpoint import SupernetFiles
    from supernet.space import Subnet


TUNINGS = f"{TUNED}/tunings.json"


def asked_to_tune(minutes: float | None, steps: int | None) -> bool:
    """Whether --tune or --tune-steps was given; UsageError where both were."""
    if minutes is not None and steps is not None:
        raise click.UsageError("--tune says how many minutes, --tune-steps how many steps: give one of them.")
    return minutes is not None or steps is not None


def check_tuning(files: SupernetFiles) -> None:
    """InputError before anything else where nothing can be trained: the full model or the text gone, adapters that do
    not fold into scales, too little memory."""
    check_full_model(files, "tuning", ", or plan without --tune")
    require_training()
    from commands.needs import check_tuning_needs
    from supernet.loading import open_source
    from supernet.recipe import Recipe
    from supernet.tune import check_tunable

    open_source(files.info["source"])
    check_tunable(files)
    recipe = Recipe.from_json(files.info["recipe"])
    if recipe.text_stays:
        check_text(str(recipe.data))
    check_tuning_needs(files.spec, recipe)


def tuner(
    files: SupernetFiles, minutes: float | None, steps: int | None, seed: int, text: str | None, trust: bool
) -> Tune:
    """Trains on a plan for so many minutes or steps, and keeps what is better on the texts that plans are judged by.

    What came of it is kept beside the supernet: asked for again, nothing is trained.
    """

    def tune(made: Plan) -> Own | str:
        kept, asked = Kept(files), [made.subnet.digest, minutes, steps, seed, made.chosen.measured]
        known = kept.known(asked, made.subnet)
        if known is not None:
            note("the scales of this subnet were tuned before, and are taken as they are")
            return known
        own = trained(made)
        kept.keep(asked, own)
        return own

    def trained(made: Plan) -> Own | str:
        from planner.pipeline import Own
        from planner.plan import NOT_TUNED, Tuned
        from planner.quality import over_texts
        from supernet.tune import tune
        from supernet.tuned import write_tuned

        note("tuning the scales of the plan " + (f"in {steps} steps" if steps else f"for {minutes:g} min"))
        before = made.chosen.measured
        own = None if text is None else OwnText(files, text)
        with progress() as report:
            found = tune(files, full_model(files, trust), made.subnet, minutes, steps, seed, report)
            measure = measured_on_texts(files, own, trust, lambda: found.supernet, "the tuned plan loses")
            after = over_texts(measure([made.subnet], tuple(before["texts"]))[0])
        if not found.tensors or not after["kl"] < before["kl"]:
            return f"{NOT_TUNED} {found.steps} steps, which won nothing and was left out: {_beside(after, before)}"
        written = write_tuned(files, made.subnet, found.tensors)
        assert written.tuned is not None
        note(f"tuned: {_beside(after, before)}; its scales are in {written.tuned.path}")
        about = Tuned(written.tuned.sha256, found.steps, seed, found.text, found.units, found.of, before)
        return Own(about, written.fingerprint, cast("Measured", after))

    return tune


class Kept:
    """What tunings of a supernet came to, by all that was asked of them, in a file beside it. What cannot be read there
    is trained again."""

    def __init__(self, files: SupernetFiles) -> None:
        self.files = files

    def known(self, asked: Sequence[Any], subnet: Subnet) -> Own | str | None:
        from planner.pipeline import Own
        from supernet.tuned import with_tuned

        found = self._read().get(self._key(asked))
        try:
            if isinstance(found, dict) and isinstance(found.get("line"), str):
                return str(found["line"])
            own = cast("Own", as_record(Own, found, "a tuning"))
            with_tuned(self.files, own.tuned.sha256, subnet)
        except InputError:
            return None
        return own

    def keep(self, asked: Sequence[Any], own: Own | str) -> None:
        from records.atomic import write_json
        from records.lock import locked

        path = self.files.place(TUNINGS, writing=True)
        with locked(path, "another plan", waiting=lambda line: None):
            said = {"line": own} if isinstance(own, str) else asdict(own)
            write_json(path, self._read() | {self._key(asked): said})

    def _read(self) -> dict[str, Any]:
        try:
            return read_json(self.files.place(TUNINGS), "list of tunings", "")
        except (InputError, OSError):
            return {}

    def _key(self, asked: Sequence[Any]) -> str:
        return hashlib.sha256(json.dumps([self.files.fingerprint, *asked]).encode()).hexdigest()[:16]


def _beside(after: Quality, before: Quality) -> str:
    """What is lost now and was lost before, on each text."""
    now = {name: one["kl"] for name, one in after["texts"].items()}
    each = (f"{name} {now[name]:.4g}, {one['kl']:.4g} before" for name, one in before["texts"].items())
    return f"KL {after['kl']:.4g}, {before['kl']:.4g} before ({'; '.join(each)})"
