"""What a network answers: its loss, and how its answers are scored.

One object per kind of experiment; training and evaluation know tasks only through ``Task``.
"""

from experiments.tasks.classification import Binary, Classification
from experiments.tasks.segmentation import Segmentation
from experiments.tasks.task import Summary, Task, answered, mean_loss

__all__ = [
    "Binary",
    "Classification",
    "Segmentation",
    "Summary",
    "Task",
    "answered",
    "create",
    "mean_loss",
]


def create(name: str, classes: int, label_smoothing: float = 0.0) -> Task:
    """Returns the task that a configuration names.

    Args:
      name: ``classification``, ``binary`` or ``segmentation``.
      classes: of the data set.
      label_smoothing: of the training loss; scores never have it.

    Raises:
      ValueError: an unknown name.
    """
    if name == "classification":
        return Classification(classes, label_smoothing)
    if name == "binary":
        return Binary(label_smoothing=label_smoothing)
    if name == "segmentation":
        return Segmentation(classes, label_smoothing)
    raise ValueError(f"unknown task {name!r}; expected classification, binary or segmentation")
