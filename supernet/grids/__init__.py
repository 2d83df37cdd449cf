"""Grids: the sets of numbers that a stored weight may take."""

from supernet.grids.base import Grid, QuantizedWeight, Stored
from supernet.grids.integer import IntegerGrid
from supernet.grids.kquant import KGrid
from supernet.grids.symmetric import SymmetricGrid

GRIDS: dict[str, Grid] = {"int": IntegerGrid(), "sym": SymmetricGrid(), "k": KGrid()}

__all__ = ["GRIDS", "Grid", "IntegerGrid", "KGrid", "QuantizedWeight", "Stored", "SymmetricGrid"]
