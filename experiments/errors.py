"""What the commands say to their user and end with; importing this loads nothing."""


class CommandError(Exception):
    """A command cannot go on; the message says why, and what to do.

    Attributes:
      status: the exit status of the program.
    """

    status = 1


class ConfigError(CommandError, ValueError):
    """What the user asked for cannot be run; the message says what was expected."""

    status = 2


class CheckpointError(CommandError, RuntimeError):
    """A checkpoint cannot be written or read; the message says which and what to do."""
