"""Quantizers: they find the codes of a matrix on a grid."""

from supernet.quantizers.base import Quantizer
from supernet.quantizers.gptq import GPTQ
from supernet.quantizers.rtn import RTN
from supernet.quantizers.yaqa import YAQA

QUANTIZERS: dict[str, type[Quantizer]] = {"rtn": RTN, "gptq": GPTQ, "yaqa": YAQA}

__all__ = ["GPTQ", "QUANTIZERS", "RTN", "YAQA", "Quantizer"]
