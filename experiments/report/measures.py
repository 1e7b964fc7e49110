"""Names each score, and writes its values."""

import math
from typing import NamedTuple


class Measure(NamedTuple):
    """A score's name for people, and its unit.

    Attributes:
      title: as in a caption.
      unit: ``%`` where shares are shown in per cent, else what the number is in, or nothing.
      decimals: digits after the point.
    """

    title: str
    unit: str = "%"
    decimals: int = 1

    @property
    def scale(self) -> float:
        """What a value is multiplied by before it is shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def label(self) -> str:
        """Title and unit, as on an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def heading(self) -> str:
        """The title at the beginning of a sentence; mIoU stays as it is."""
        return self.title if self.title[1:2].isupper() else self.title.capitalize()

    def text(self, value: float, *, signed: bool = False) -> str:
        """Returns the value as it is shown, without unit; empty where it does not exist."""
        if math.isnan(value):
            return ""
        shown = round(self.scale * value, self.decimals) + 0.0  # adding zero turns -0.0 into 0.0
        return f"{shown:{'+' if signed else ''}.{self.decimals}f}"


_KNOWN = {
    "accuracy": Measure("accuracy"),
    "auc": Measure("AUC", "", 3),
    "miou": Measure("mIoU"),
    "pixel_accuracy": Measure("pixel accuracy"),
    "micro_jaccard": Measure("micro Jaccard"),
    "loss": Measure("loss", "nats", 3),
}
_OF_TASKS = {
    "classification": ("accuracy",),
    "binary": ("auc", "accuracy"),
    "segmentation": ("miou", "pixel_accuracy"),
}


def measure(metric: str) -> Measure:
    """Returns how a metric of ``results.json`` is written."""
    return _KNOWN.get(metric, Measure(metric, "", 3))


def of_task(task: str) -> tuple[str, ...]:
    """Returns the metrics of a task that stand in tables and plots; the files have all."""
    return _OF_TASKS[task]
