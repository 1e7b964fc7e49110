"""Warnings and errors of attacks."""


class ShortReachWarning(UserWarning):
    """The sum of an attack's step sizes is smaller than the radius of its ball."""


class RadiusWarning(UserWarning):
    """A ball contains the whole box: its radius is probably in other units than the inputs."""


class BatchDependenceWarning(UserWarning):
    """An example's logits change with the other examples of its batch, or with its place."""


class ProbabilitiesWarning(UserWarning):
    """A model seems to return probabilities instead of logits."""


class RandomLogitsWarning(UserWarning):
    """A model's logits for the same inputs differ between two calls."""


class NotFiniteError(ValueError, FloatingPointError):
    """A model's logits or gradients are NaN or infinite, so that they say nothing."""


class LeftThreatError(AssertionError):
    """An attack's result lies outside the ball or the box: an error in the attack."""
