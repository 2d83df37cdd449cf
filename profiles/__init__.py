"""What the hardware is: profiles of devices, measured or from datasheets. A leaf, and no torch at import.

Start at `profiles.device.DeviceProfile`, `profiles.detect.detect` and `profiles.catalog.load`.
"""
