"""Sharing: which choices of a unit are trained through one adapter."""

from supernet.sharing.base import Agreement, Sharing
from supernet.sharing.decoupled import Decoupled
from supernet.sharing.matched import Matched
from supernet.sharing.shared import Shared

SHARINGS: dict[str, type[Sharing]] = {"decoupled": Decoupled, "shared": Shared, "matched": Matched}

__all__ = ["SHARINGS", "Agreement", "Decoupled", "Matched", "Shared", "Sharing"]
