"""Grids: the sets of numbers that a stored weight may take."""

from supernet.grids.base import Grid, QuantizedWeight, Stored
from supernet.grids.integer import IntegerGrid
from supernet.grids.symmetric import SymmetricGrid

GRIDS: dict[str, Grid] = {"int": IntegerGrid(), "sym": SymmetricGrid()}

__all__ = ["GRIDS", "Grid", "IntegerGrid", "QuantizedWeight", "Stored", "SymmetricGrid"]
