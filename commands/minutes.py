"""Minutes on the command line: a number that a clock can wait for."""

from __future__ import annotations

from typing import Any

import click

MOST = 60.0 * 24 * 366


class Minutes(click.FloatRange):
    """Above 0 and at most a year; a click range takes nan, which is neither above nor below anything."""

    name = "minutes"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=MOST)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if found != found:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return found
