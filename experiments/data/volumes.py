"""NIfTI volumes with a table of labels, brought to one shape and range.

The table is a CSV file with the columns ``path,label`` and, if known, ``site``, ``split`` and
``subject``; others are ignored.  Paths are relative to the table's folder, or absolute; labels are
0 or 1.  Without a ``split`` column the seed splits by subject, so that no subject is in two parts;
**without a ``subject`` column every file counts as a subject of its own**, which is right only if
no subject was scanned twice.
"""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import scipy.ndimage
from nibabel.funcs import squeeze_image

from experiments.configs.data import VolumesData
from experiments.data.cache import Allocate, OnProgress, cached, fill, report, source_key
from experiments.data.examples import DataError, Dataset, Examples
from experiments.data.harmonise import Combat
from experiments.data.table import PARTS, Row, read, split_rows
from experiments.errors import ConfigError

NAMES = ("0", "1")


def load(
    config: VolumesData,
    data_dir: Path,
    cache_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Loads, checks and splits volumes.

    A volume is turned to the canonical axes (right, anterior, superior), normalised, and brought
    to the shape: ``resample`` stretches each axis to its length whatever the voxel size, ``crop``
    keeps the voxels.

    Args:
      config: shape, range, split.
      data_dir: the folder with the table.
      cache_dir: where the finished arrays are kept; None to decode every time.
      on_progress: called with (done, total, what).

    Returns:
      Volumes (N, *shape, 1) float32 in [0, 1], labels (N,) int32 in {0, 1}.  All parts are in
      random order.

    Raises:
      ConfigError: the data cannot be split or harmonised as asked.
      DataError: the table or the volumes are not as described; up to ten problems at once.
    """
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder (expected volumes and {config.table})")
    rows = read(data_dir / config.table)
    parts = split_rows(rows, config, data_dir / config.table)
    if config.harmonise:
        _check_sites(parts, data_dir / config.table)
    used = [row for name in PARTS for row in parts[name]]
    key = {
        "files": source_key([row.path for row in used], data_dir),
        "parts": [len(parts[name]) for name in PARTS],
        "shape": config.shape,
        "fit": config.fit,
        "normalise": config.normalise,
        "sites": [row.site for row in used] if config.harmonise else None,
        "versions": [importlib.metadata.version(name) for name in ("nibabel", "scipy")],
    }

    def build(allocate: Allocate) -> None:
        arrays = {
            name: allocate(name, (len(parts[name]), *config.shape, 1), np.float32)
            for name in PARTS
            if parts[name]
        }
        places = [(row, arrays[name][i]) for name in PARTS for i, row in enumerate(parts[name])]

        def decode(_: int, item: tuple[Row, np.ndarray]) -> None:
            row, place = item
            place[..., 0] = _volume(row, config)

        report(fill(places, decode, "volumes", on_progress))
        if config.harmonise:
            _harmonise(arrays, parts)

    arrays = cached(cache_dir, "volumes", key, build)
    empty = np.empty((0, *config.shape, 1), np.float32)
    train, validation, test = (
        Examples(
            arrays.get(name, empty), np.array([row.label for row in parts[name]], dtype=np.int32)
        )
        for name in PARTS
    )
    return Dataset(train, validation, test, classes=len(NAMES), class_names=NAMES)


def _volume(row: Row, config: VolumesData) -> np.ndarray:
    """One volume, float32 of the configured shape.

    Raises:
      DataError: it cannot be read or used; the message names the file and its line in the table.
    """
    where = f"{row.path} (line {row.line})"
    try:
        image = squeeze_image(nibabel.load(row.path))
        shape = image.shape
        # Before its voxels are read: a time series may be larger than memory.
        voxels = (
            nibabel.as_closest_canonical(image).get_fdata(dtype=np.float32, caching="unchanged")
            if len(shape) == 3
            else None
        )
    except Exception as error:  # nibabel raises what gzip, NumPy and its own parsers raise
        raise DataError(
            f"{where}: cannot be read as NIfTI, or is cut short ({type(error).__name__}: {error})"
        ) from error
    if voxels is None:
        raise DataError(f"{where}: has the shape {shape}; three dimensions are needed")
    unusable = np.count_nonzero(~np.isfinite(voxels))
    if unusable:
        raise DataError(f"{where}: {unusable} of {voxels.size} voxels are NaN or infinite")
    return _fit(_normalise(voxels, config.normalise, where), config.shape, config.fit)


def _normalise(voxels: np.ndarray, how: str, where: str) -> np.ndarray:
    """Values in [0, 1], float32."""
    lowest, highest = float(voxels.min()), float(voxels.max())
    if lowest == highest:
        raise DataError(f"{where}: constant, every voxel is {lowest:g}")
    if how == "none":
        if lowest < 0 or highest > 1:
            raise DataError(
                f"{where}: values from {lowest:g} to {highest:g}; normalise = none takes values "
                "in [0, 1] only"
            )
        return voxels
    if how == "percentile":
        lowest, highest = (float(value) for value in np.percentile(voxels, (1, 99)))
        if lowest == highest:
            raise DataError(
                f"{where}: its 1st and 99th percentiles are both {lowest:g}; use normalise = minmax"
            )
    # In float64: float32 values may be further apart than float32 can say.
    scaled = (voxels.astype(np.float64) - lowest) / (highest - lowest)
    return np.clip(scaled, 0, 1).astype(np.float32)


def _fit(voxels: np.ndarray, shape: Sequence[int], how: str) -> np.ndarray:
    """The volume in the given shape."""
    if voxels.shape == tuple(shape):
        return voxels
    if how == "resample":
        factors = [new / old for new, old in zip(shape, voxels.shape, strict=True)]
        # On a grid of voxels, not of points: the edges of the volume stay its edges.
        resampled = scipy.ndimage.zoom(
            voxels, factors, order=1, mode="nearest", grid_mode=True, prefilter=False
        )
        return np.clip(resampled, 0, 1)
    fitted = np.full(shape, voxels.min(), np.float32)
    source, target = [], []
    for new, old in zip(shape, voxels.shape, strict=True):
        length = min(new, old)
        source.append(slice((old - length) // 2, (old - length) // 2 + length))
        target.append(slice((new - length) // 2, (new - length) // 2 + length))
    fitted[tuple(target)] = voxels[tuple(source)]
    return fitted


def _check_sites(parts: dict[str, list[Row]], table: Path) -> None:
    """Whether the sites can be harmonised on the training part.

    Raises:
      ConfigError: they cannot; the message says why.
    """
    missing = [row.line for name in PARTS for row in parts[name] if not row.site]
    if missing:
        lines = ", ".join(str(line) for line in missing[:10])
        raise ConfigError(
            f"{table}: harmonise needs the column site, filled in every row; it is empty in "
            f"{len(missing)} (lines {lines}{', ...' if len(missing) > 10 else ''})"
        )
    sites = [row.site for row in parts["train"]]
    known = sorted(set(sites))
    if len(known) < 2:
        raise ConfigError(f"{table}: harmonise needs two sites or more for training, not {known}")
    single = [site for site in known if sites.count(site) < 2]
    if single:
        raise ConfigError(
            f"{table}: harmonise needs two training volumes per site; there is one of {single}"
        )
    for name in PARTS[1:]:
        strange = sorted({row.site for row in parts[name]} - set(known))
        if strange:
            raise ConfigError(
                f"{table}: harmonise cannot treat the sites {strange} of the {name} part, which "
                "are not in the training part"
            )


def _harmonise(arrays: dict[str, np.ndarray], parts: dict[str, list[Row]]) -> None:
    """Fits on the training part, and changes all parts in place."""
    sites = {name: np.array([row.site for row in parts[name]]) for name in arrays}
    model = Combat.fit(arrays["train"], sites["train"])
    for name, volumes in arrays.items():
        model.apply(volumes, sites[name])
