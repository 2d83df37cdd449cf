"""The search of Once-for-All (arXiv 1908.09791, section 3.4): a predictor of the loss, then evolution on the predictor.

Random subnets are evaluated, a predictor learns their losses, and a population evolves on what it predicts: the best
quarter are parents, half of the children are mutations, half are crossovers, and a child that passes a limit is drawn
again. Numbers are the paper's and those of the authors' code. What differs, and why:

- The predictor is a ridge regression on the paper's one-hot encoding, not three layers of 400. Evaluating a language
  model takes about a second, so hundreds of samples are likely and the paper's 16,000 are not. On 121 units that
  interact the ridge ranks unseen subnets better from 100, 400 and 2000 samples, and a little worse from 16,000
  (docs/log.md). It takes a fraction of the time, and planning goes on without torch.
- Random subnets are drawn evenly from those within the limits, and a mutated unit is drawn with the same tilted
  probabilities (planner.search.feasible). With even ones hardly a child would fit a tight budget.
- The first population is the predicted best of the samples, not another hundred at random. Parents are distinct, or
  copies of one subnet soon fill the population.
- The paper keeps the subnet predicted best. Here the best `finalists` are evaluated and the best of all that were
  evaluated is kept: what is found was measured, and is never worse than a start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from planner.search.base import Candidate, Found, Problem, Search, ranked
from planner.search.feasible import Feasible, Floats, Rows

PENALTIES = np.logspace(-4, 4, 33)
REDRAWS = 100
"""A child that passes a limit so many times in a row is its parent again."""


@dataclass(frozen=True)
class EvolutionSearch(Search):
    """Evaluates `samples` random subnets, `finalists` evolved ones, and every start."""

    name = "evolution"
    samples: int = 16_000
    finalists: int = 50
    population: int = 100
    generations: int = 500
    parents: float = 0.25
    mutated: float = 0.5
    """The share of the children that are mutations; the others are crossovers."""
    mutation: float = 0.1
    """How likely each unit of a mutation is drawn anew."""

    def search(self, problem: Problem, starts: Sequence[Candidate] = (), seed: int = 0) -> Found:
        started = time.perf_counter()
        value = cache(problem.value)
        random = np.random.default_rng(seed)
        feasible = Feasible.of(problem)
        proposals = [(start.subnet, start.source) for start in starts]
        proposals += [(subnet, self.name) for subnet in feasible.sample(self.samples, random)]
        known = list(dict.fromkeys(subnet for subnet, _ in proposals if problem.feasible(subnet)))
        if known:
            rows = np.stack([feasible.row(subnet) for subnet in known])
            predict = Ridge.fit(rows, np.array([value(subnet) for subnet in known]), feasible.odds.shape[1])
            evolved = self._evolve(feasible, predict, rows, random)
            proposals += [(feasible.subnet(row), self.name) for row in evolved[: self.finalists]]
        found = ranked(replace(problem, objective=value), proposals)
        trace = {
            "solver": "Once-for-All evolution",
            "evaluations": value.cache_info().currsize,
            "generations": self.generations,
            "seed": seed,
            "seconds": round(time.perf_counter() - started, 3),
        }
        return Found(found, trace)

    def _evolve(self, feasible: Feasible, predict: Ridge, rows: Rows, random: np.random.Generator) -> Rows:
        """The last population, predicted best first, no two alike. What is predicted best never leaves it."""
        rows = best(rows, predict)[: self.population]
        for _ in range(self.generations):
            parents = rows[: max(1, round(self.parents * self.population))]
            rows = best(np.concatenate([parents, self._children(feasible, parents, random)]), predict)
        return rows

    def _children(self, feasible: Feasible, parents: Rows, random: np.random.Generator) -> Rows:
        """As many as the population; those that pass a limit are drawn again, from the same parents."""
        first, second = parents[random.integers(len(parents), size=(2, self.population))]
        children, waiting = first.copy(), np.arange(self.population)
        for _ in range(REDRAWS):
            mutates = waiting < round(self.mutated * self.population)
            anew = random.random(first[waiting].shape) < self.mutation
            mutated = np.where(anew, feasible.draw(len(waiting), random), first[waiting])
            crossed = np.where(random.random(anew.shape) < 0.5, first[waiting], second[waiting])
            drawn = np.where(mutates[:, None], mutated, crossed)
            fit = feasible.fit(drawn)
            children[waiting[fit]] = drawn[fit]
            waiting = waiting[~fit]
            if not len(waiting):
                break
        return children


def best(rows: Rows, predict: Ridge) -> Rows:
    """Each subnet once, predicted best first."""
    rows = np.unique(rows, axis=0)
    return np.asarray(rows[np.argsort(predict(rows), kind="stable")])


@dataclass(frozen=True)
class Ridge:
    """Predicts a subnet's loss as a mean and a weight for each unit's choice, `(units, choices)`."""

    mean: float
    weights: Floats = field(repr=False)

    def __call__(self, rows: Rows) -> Floats:
        return np.asarray(self.mean + self.weights[np.arange(rows.shape[1]), rows].sum(axis=1))

    @classmethod
    def fit(cls, rows: Rows, losses: Floats, choices: int) -> Ridge:
        """Least squares on one-hot rows, with the penalty whose leave-one-out error is least (in closed form)."""
        features = np.eye(choices)[rows].reshape(len(rows), -1)
        centre, mean = features.mean(axis=0), float(losses.mean())
        features, target = features - centre, losses - mean
        values, vectors = np.linalg.eigh(features.T @ features)
        values, rotated = np.maximum(values, 0), features @ vectors
        seen = rotated.T @ target
        errors = []
        for penalty in PENALTIES:
            left = target - rotated @ (seen / (values + penalty))
            freedom = 1 - 1 / len(rows) - rotated**2 @ (1 / (values + penalty))
            errors.append(((left / np.maximum(freedom, 1e-9)) ** 2).mean())
        weights = vectors @ (seen / (values + PENALTIES[np.argmin(errors)]))
        return cls(float(mean - centre @ weights), weights.reshape(-1, choices))
