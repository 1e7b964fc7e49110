"""Loads data sets: from files on disk to arrays, one loader per kind of data."""

import dataclasses
from pathlib import Path

from experiments.configs.data import (
    Cifar10Data,
    CityscapesData,
    DataConfig,
    DigitsData,
    VolumesData,
)
from experiments.data.examples import Dataset
from experiments.data.problems import DataError, OnProgress
from experiments.errors import ConfigError

_LAYOUTS = {
    "cifar10": "a TensorFlow Datasets folder with cifar10/3.0.2/ in it, or an empty folder to "
    "prepare it in",
    "volumes": "a folder with NIfTI volumes and the table {table} (path,label[,site][,split]"
    "[,subject])",
    "cityscapes": "a folder with leftImg8bit/{{train,val,test}}/CITY/*_leftImg8bit.png and "
    "gtFine/{{train,val,test}}/CITY/*_gtFine_labelIds.png (or "
    "*_gtFine_labelTrainIds.png with data.labels=trainIds)",
}


def load(
    config: DataConfig,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Loads, checks and splits a data set.

    Args:
      config: which one, and how.
      data_dir: folder of the data; the digits need none.
      cache_dir: where decoded arrays are kept for the next time; None to keep nothing.
      on_progress: called with (done, total, what) while files are decoded.

    Raises:
      ConfigError: the folder is not given, or the data cannot be split as asked.
      DataError: the files in the folder are not as described, or may not be read.
    """
    try:
        return _load(config, data_dir, cache_dir, on_progress)
    except OSError as error:  # a folder without permission to enter it, a share that went away
        raise DataError(
            f"{error.filename or data_dir}: cannot be read ({error.strerror or error})"
        ) from error


def _load(
    config: DataConfig,
    data_dir: Path | None,
    cache_dir: Path | None,
    on_progress: OnProgress | None,
) -> Dataset:
    # Imported where needed: each loader brings libraries that the others can do without.
    if isinstance(config, DigitsData):
        from experiments.data import digits  # noqa: PLC0415

        return digits.load(config, cache_dir)
    if data_dir is None:
        layout = _LAYOUTS[config.kind].format(**dataclasses.asdict(config))
        raise ConfigError(f"{config.kind} needs --data-dir: {layout}")
    data_dir = Path(data_dir)
    if isinstance(config, Cifar10Data):
        from experiments.data import cifar10  # noqa: PLC0415

        return cifar10.load(config, data_dir, cache_dir, on_progress)
    if isinstance(config, VolumesData):
        from experiments.data import volumes  # noqa: PLC0415

        return volumes.load(config, data_dir, cache_dir, on_progress)
    if isinstance(config, CityscapesData):
        from experiments.data import cityscapes  # noqa: PLC0415

        return cityscapes.load(config, data_dir, cache_dir, on_progress)
    raise ConfigError(f"unknown kind of data: {config!r}")
