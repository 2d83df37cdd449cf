from planner.search.base import Candidate, Found, Problem, Resource, Search
from planner.search.evolution import EvolutionSearch
from planner.search.exact import ExactSearch
from planner.search.front import FrontSearch
from planner.search.measured import MeasuredSearch
from planner.search.optuna_search import OptunaSearch
from planner.search.shrink import ShrinkSearch

SEARCHES: dict[str, type[Search]] = {
    "evolution": EvolutionSearch,
    "exact": ExactSearch,
    "front": FrontSearch,
    "measured": MeasuredSearch,
    "optuna": OptunaSearch,
    "shrink": ShrinkSearch,
}

__all__ = [
    "SEARCHES", "Candidate", "EvolutionSearch", "ExactSearch", "Found", "FrontSearch", "MeasuredSearch", "OptunaSearch",
    "Problem", "Resource", "Search", "ShrinkSearch",
]  # fmt: skip
