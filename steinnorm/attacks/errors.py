"""What attacks warn of, and what they refuse to go on with."""


class ShortReachWarning(UserWarning):
    """An attack's steps, laid end to end, are shorter than the radius of its ball."""


class RadiusWarning(UserWarning):
    """A ball holds every input of the box: its radius is probably in other units."""


class BatchDependenceWarning(UserWarning):
    """An example's logits change with the other examples of its batch."""


class ProbabilitiesWarning(UserWarning):
    """A model seems to return probabilities where logits are wanted."""


class RandomLogitsWarning(UserWarning):
    """A model's logits for the same inputs differ between two calls."""


class NotFiniteError(ValueError):
    """A model's logits or gradients are NaN or infinite where an attack needs them."""


class LeftThreatError(AssertionError):
    """An attack's result lies outside of what its threat allows: a fault of the attack."""
