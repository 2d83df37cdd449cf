"""The charts of the pages, from what the other scripts printed.

pip install "bitfleet[charts]"
python benchmarks/charts.py

results/frontier.json and rivals.json become docs/frontier.svg, results/limits.json becomes docs/limits.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

RESULTS, DOCS = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs"
OURS = "#1f5fbf"
OTHERS = {
    "GPTQ": "#c0561c",
    "AutoRound": "#6b4fa0",
    "HQQ, integer zeros": "#2f8a5b",
    "round-to-nearest": "#8a8a8a",
}
TEXTS = {"eval.txt": ("evaluation text", OURS), "train.txt": ("held out of the training text", "#8a8a8a")}
STYLE = {
    "font.size": 10,
    "svg.hashsalt": "bitfleet",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main() -> None:
    plt.rcParams.update(STYLE)
    for name, draw in (("frontier", frontier), ("limits", limits)):
        draw().savefig(DOCS / f"{name}.svg", metadata={"Date": None})


def frontier() -> Any:
    """One supernet at every size, and each of the rivals."""
    rivals = rows("rivals.json")
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for tool, colour in OTHERS.items():
        draw_line(axes, points(rivals, tool), tool, colour, width=1.4)
    draw_line(axes, points(rows("frontier.json"), None), "bitfleet, one training", OURS, width=2.6)
    axes.set(
        yscale="log",
        xlabel="megabytes of the linears, scales and zeros included",
        ylabel="KL per token from the full model",
        title="SmolLM2-135M: one supernet against quantizers run once for each size",
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", which="both", linewidth=0.4, alpha=0.5)
    axes.legend(frameon=False)
    return figure


def limits() -> Any:
    """What more steps and more text do for learned codes, on each text."""
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.4), layout="constrained", sharey=True)
    labels = {"steps": "steps of learned rounding on each block", "windows": "windows of 256 tokens to learn from"}
    for axes, (curve, label) in zip(panels, labels.items(), strict=True):
        found = [row for row in rows("limits.json") if row["curve"] == curve]
        for text, (name, colour) in TEXTS.items():
            draw_line(axes, [(row[curve], row["kl"][text]) for row in found], name, colour, width=2.0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(ylim=(0, None), xlabel=label)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    panels[0].set_ylabel("KL per token from the full model")
    panels[0].legend(frameon=False, loc="lower left")
    figure.suptitle("Learned rounding of SmolLM2-135M's first blocks, 3 bits")
    return figure


def rows(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RESULTS / name).read_text(encoding="utf-8"))["rows"]
    return found


def points(found: list[dict[str, Any]], tool: str | None) -> list[tuple[float, float]]:
    """Megabytes and KL of what loses less than everything smaller."""
    best: list[tuple[float, float]] = []
    for size, kl in sorted((row["linear_bytes"] / 1e6, row["kl"]) for row in found if row.get("tool") == tool):
        if not best or kl < best[-1][1]:
            best.append((size, kl))
    return best


def draw_line(axes: Any, line: list[tuple[float, float]], label: str, colour: str, width: float) -> None:
    if line:
        sizes, losses = zip(*line, strict=True)
        axes.plot(sizes, losses, marker="o", markersize=3 + width / 2, linewidth=width, color=colour, label=label)


if __name__ == "__main__":
    main()
