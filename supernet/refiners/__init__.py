"""Refiners: they improve the codes of a whole supernet, beyond one matrix."""

from supernet.refiners.base import Refiner
from supernet.refiners.learned import Learned

REFINERS: dict[str, type[Refiner]] = {"learned": Learned}

__all__ = ["REFINERS", "Learned", "Refiner"]
