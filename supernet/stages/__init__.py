"""The stages of making a supernet, in their order: each from the folder to the folder."""

from supernet.stages.base import Stage
from supernet.stages.codes import Codes
from supernet.stages.measure import Measure
from supernet.stages.prepare import Prepare
from supernet.stages.train import Train
from supernet.stages.trial import Trial

STAGES: tuple[Stage, ...] = (Prepare(), Codes(), Train(), Trial(), Measure())
