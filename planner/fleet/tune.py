"""Scales of their own for the subnets that a fleet's packages have: each is trained once, for all who take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.fleet.plan import FleetPlan, Member
from planner.pipeline import Own, Tune, with_own
from supernet.space import Subnet


def tuned(
    made: FleetPlan, tune: Tune, told: Callable[[int, int, str], None] = lambda number, of, names: None
) -> FleetPlan:
    """The fleet with the scales that `tune` trains on the plan of one device for each subnet; who takes what stays.

    Before each, `told` is given its number, of how many, and the packages that it is in.
    """
    names: dict[Subnet, list[str]] = {}
    for package in made.packages:
        names.setdefault(package.subnet, []).append(package.name)
    own: dict[Subnet, Own | str] = {}
    for package in made.packages:
        if package.subnet not in own:
            told(len(own) + 1, len(names), ", ".join(names[package.subnet]))
            own[package.subnet] = tune(next(iter(package.plans.values())))

    def with_scales(member: Member) -> Member:
        plan = member.plan
        return member if plan is None else replace(member, plan=with_own(plan, own[plan.subnet]))

    packages = [replace(one, members=tuple(map(with_scales, one.members))) for one in made.packages]
    return replace(made, members=tuple(map(with_scales, made.members)), packages=tuple(packages))
