"""What attacks warn of, and what they refuse to go on with."""


class RadiusWarning(UserWarning):
    """A ball holds every input of the box: its radius is probably in other units."""
