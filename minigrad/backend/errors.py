"""What goes wrong with a device."""


class DeviceError(RuntimeError):
    """The device or kernel set that was asked for cannot be used here; the message names the fix."""
