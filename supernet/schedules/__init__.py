"""Schedules: which choices are open at a training step."""

from supernet.schedules.base import Schedule
from supernet.schedules.constant import Constant
from supernet.schedules.delayed import Delayed
from supernet.schedules.progressive import Progressive

SCHEDULES: dict[str, type[Schedule]] = {"constant": Constant, "progressive": Progressive, "delayed": Delayed}

__all__ = ["SCHEDULES", "Constant", "Delayed", "Progressive", "Schedule"]
