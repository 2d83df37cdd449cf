"""The page: everything in it, nothing loaded from elsewhere, nothing of an index taken for HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from planner.answers import TO_SUBNET
from planner.fleet.index import LOADS, MEMORY, TIME, Device, Difference, Index
from planner.fleet.page import page
from planner.fleet.receipts import Receipt, accept
from planner.rows import BROKEN, Row
from profiles.catalog import load
from tests.planner.fleet.example import index


def filled() -> Index:
    """With receipts of two machines, a broken promise, and differences from a baseline."""
    made = index()

    def receipt(number: int, machine: str, tpot_ms: float, kl: float, device: str = "") -> Receipt:
        package = made.packages[number]
        peak = int(0.97 * sum(item.bytes for item in package.memory))
        verdict = {"verdict": BROKEN, "note": "over the limit"} if kl > 0.01 else {}
        rows = (
            Row(LOADS, "", 1.0, 1.0), Row(MEMORY, "bytes", peak, peak), Row(TIME, "ms", tpot_ms, tpot_ms),
            Row(TO_SUBNET, "nats/token", 0.01, kl, **verdict),
        )  # fmt: skip
        return Receipt(
            package.name, package.manifest_sha256, {name: entry.sha256 for name, entry in package.files.items()}, "x",
            Device.of(load(machine)), {"onnxruntime": "1.31.0"}, "2026-12-02T08:00:00+00:00", rows, device,
        )  # fmt: skip

    made = accept(
        made,
        [
            receipt(0, "raspberry-pi-5-8gb", 29.8, 2.1e-6),
            receipt(1, "desktop-ryzen-7950x-64gb", 3.3, 1.7e-6),
            receipt(2, "desktop-ryzen-5600-16gb", 8.9, 0.3, "desk"),
        ],
    )
    worse = Difference("kiosk", "loss", "kiosk: worse, loss 0.1154 -> 0.121, +4.9%, allowed +2%", True)
    new = Difference("watch", "new", "watch: is new and is not served: memory of 100 MB cannot be met", False)
    return replace(made, differences=(worse, new))


class Tags(HTMLParser):
    """Whether every element is closed in its turn; what attributes there are; the text."""

    VOID = ("meta", "link", "br", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in self.VOID or tag == "rect":
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.mark.parametrize("made", [index(), filled()], ids=["promised", "measured"])
def test_the_page_is_whole_and_loads_nothing(made: Index) -> None:
    html = page(made)
    tags = Tags(html)
    assert not re.search(r"<script|https?://|@import|url\(|<link|<img|<iframe", html)
    ids = {value for _, name, value in tags.attributes if name == "id"}
    files = {f"{package.name}/{name}" for package in made.packages for name in ("manifest.json", *package.files)}
    for link in (value for _, name, value in tags.attributes if name == "href"):
        assert link[1:] in ids if link.startswith("#") else link in files


def test_the_page_says_all_that_a_reader_takes_a_package_by() -> None:
    text = Tags(page(filled())).text
    for said in (
        "4 packages for 7 devices, every one within 5 % of its own best loss. No fewer of the subnets that were",
        "own best 0.1162, +4.1 %", "its own best", "31.4 ms of 50.0 ms, estimate",
        "watch a watch memory of 100 MB cannot be met, the smallest plan needs 168.3 MB of memory; use --mem 168.3MB",
        "kiosk: worse, loss 0.1154 -> 0.121, +4.9%, allowed +2%", "KL per token 0.412 nats, measured",
        "held-out 0.3708 ± 0.025",
        "for raspberry-pi-5-8gb, small-pi", "over the limit", "measured on another machine", "1 broken",
    ):  # fmt: skip
        assert said in text, said
    for word in ("holds", "BROKEN", "open", "elsewhere"):
        assert f" {word} " in text


def test_what_comes_from_files_is_text() -> None:
    made = index()
    evil = '<script>alert("x")</script>'
    devices = tuple(
        replace(one, refused=evil) if one.package is None else replace(one, device=replace(one.device, model=evil))
        for one in made.devices
    )
    html = page(replace(made, devices=devices, versions={evil: evil}, model={**made.model, "name": evil}))
    assert "<script" not in html
    Tags(html)


def test_an_unsettled_cover_and_an_empty_index_are_said() -> None:
    assert "By 12.5 % fewer packages might do" in Tags(page(replace(index(), proven=False, gap=0.125))).text
    Tags(page(replace(index(), packages=(), devices=index().devices[-1:], slots=())))
