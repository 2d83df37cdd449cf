"""Gradient matching (Hu et al., "Generalizing Few-Shot NAS with Gradient Matching", arXiv 2203.15207, section 3.2):
choices whose gradients on shared weights point apart get weights of their own, those that agree share them.

The distance of two choices is 1 - cosine. The paper cuts a fixed number of groups of equal size out of many operations;
with a handful of bit-widths, average linkage merges the closest groups while they are nearer than `apart`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from supernet.sharing.base import Agreement, Sharing
from supernet.space import Choice


@dataclass(frozen=True)
class Matched(Sharing):
    apart: float = 0.5
    """Mean 1 - cosine from which two groups stay apart."""

    measures = True

    def groups(self, choices: Sequence[Choice], agreement: Agreement) -> tuple[tuple[Choice, ...], ...]:
        from scipy.cluster.hierarchy import fcluster, linkage

        if len(choices) < 2:
            return tuple((choice,) for choice in choices)
        pairs = [(a, b) for i, a in enumerate(choices) for b in choices[i + 1 :]]
        distances = [1 - agreement[pair] for pair in pairs]
        labels = fcluster(linkage(distances, "average"), self.apart, "distance")
        groups: dict[int, list[Choice]] = defaultdict(list)
        for choice, label in zip(choices, labels, strict=True):
            groups[int(label)].append(choice)
        return tuple(tuple(group) for group in groups.values())
