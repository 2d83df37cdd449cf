"""Many devices at once: a file that names them, the packages that serve them, and what is known of each.

Start at `planner.fleet.fleetfile` and `planner.fleet.index`.
"""
