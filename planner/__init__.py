"""Decides: what a device can run, what loses least there, and whether a package keeps what was promised."""

import os

# ONNX Runtime counts its users: on import it writes a device id and a queue of events into the home folder and looks
# for a server. It reads this variable once, when it is imported, and processes that are started from here inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
