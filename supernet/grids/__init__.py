"""Grids: the sets of numbers that a stored weight may take."""

from supernet.grids.base import PARTS, Grid, QuantizedWeight, Stored
from supernet.grids.integer import IntegerGrid

GRIDS: dict[str, Grid] = {"int": IntegerGrid()}

__all__ = ["GRIDS", "PARTS", "Grid", "IntegerGrid", "QuantizedWeight", "Stored"]
