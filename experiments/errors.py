"""What the commands say to their user and end with; importing this loads nothing."""


class ConfigError(ValueError):
    """What the user asked for cannot be run; the message says what was expected."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which and what to do."""
