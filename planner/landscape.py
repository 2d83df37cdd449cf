"""What subnets are measured to lose, in the units of one runtime's problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.frame import Framed
from planner.search.base import Table
from planner.search.study import Landscape
from supernet.space import Subnet
from supernet.ties import tied_table


@dataclass(frozen=True)
class TiedLandscape:
    """A supernet's `landscape` where the runtime ties units: they move together, so their slopes add up."""

    landscape: Landscape
    framed: Framed

    @property
    def samples(self) -> int:
        return self.landscape.samples

    def losses(self, subnets: Sequence[Subnet]) -> Sequence[float]:
        return self.landscape.losses([self.framed.apart(subnet) for subnet in subnets])

    def slopes(self, subnet: Subnet, sample: int) -> Table:
        return tied_table(self.landscape.slopes(self.framed.apart(subnet), sample), self.framed.costs.spec)
