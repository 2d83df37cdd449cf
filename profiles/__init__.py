"""What the hardware is: profiles of devices, measured or from datasheets. Imports neither torch nor the rest of bitfleet.

Start at `profiles.device.DeviceProfile`, `profiles.detect.detect` and `profiles.catalog.load`.
"""
