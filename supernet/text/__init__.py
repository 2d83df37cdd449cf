"""Text for calibration, training and measuring, as windows of token ids that begin as the model's tokenizer begins a
text: read from a file, a pipe or a data set, or written by the full model itself."""

from supernet.text.beginning import beginning
from supernet.text.own import own_windows
from supernet.text.reading import check_source
from supernet.text.sampling import sample_windows
from supernet.text.windows import manual_windows, read_windows, spread_windows

__all__ = [
    "beginning",
    "check_source",
    "manual_windows",
    "own_windows",
    "read_windows",
    "sample_windows",
    "spread_windows",
]
