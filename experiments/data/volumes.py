"""NIfTI volumes with a table of labels, brought to one shape and range.

The table is a CSV file with the columns ``path,label`` and, if known, ``site``, ``split`` and
``subject``; others may be there, but names that are nearly one of these are refused.  Paths are
relative to the table's folder, or absolute; labels are 0 or 1.  Without a ``split`` column, or with
``split = drawn``, the seed splits by subject, so that no subject is in two parts; **without a
``subject`` column every file counts as a subject of its own**, which is right only if no subject
was scanned twice.
"""

import importlib.metadata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import scipy.ndimage
from nibabel.affines import voxel_sizes
from nibabel.funcs import squeeze_image

from experiments.configs.data import VolumesData
from experiments.data.cache import Allocate, cached, source_key
from experiments.data.examples import Dataset, Examples
from experiments.data.harmonise import Combat
from experiments.data.problems import DataError, OnProgress, decode_all, first_line
from experiments.data.table import PARTS, Volume, read_table, split_volumes, subjects_note
from experiments.errors import ConfigError

NAMES = ("0", "1")
_SIZES = "voxel_sizes"
_SAME_SIZE = 0.01  # relative; scanners and programs round voxel sizes differently
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}  # what is not said is taken as mm


def load(
    config: VolumesData,
    data_dir: Path,
    cache_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Loads, checks and splits volumes.

    A volume is turned to the canonical axes (right, anterior, superior), normalised, and brought
    to the shape: ``resample`` stretches each axis to its length whatever the voxel size, ``crop``
    keeps the voxels, and so takes volumes of one voxel size only.

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
    table = data_dir / config.table
    parts = split_volumes(read_table(table), config, table)
    if config.harmonise:
        _check_sites(parts, table)
    used = [volume for name in PARTS for volume in parts[name]]
    key = {
        "files": source_key([volume.path for volume in used], data_dir),
        "parts": [len(parts[name]) for name in PARTS],
        "shape": config.shape,
        "fit": config.fit,
        "normalise": config.normalise,
        "sites": [volume.site for volume in used] if config.harmonise else None,
        "versions": [importlib.metadata.version(name) for name in ("nibabel", "scipy")],
        "arrays": [*PARTS, _SIZES],
    }

    def build(allocate: Allocate) -> None:
        arrays = {
            name: allocate(name, (len(parts[name]), *config.shape, 1), np.float32)
            for name in PARTS
            if parts[name]
        }
        sizes = allocate(_SIZES, (len(used), 3), np.float32)
        places = [place for name in PARTS if parts[name] for place in arrays[name]]

        def decode(position: int, volume: Volume) -> None:
            places[position][..., 0], sizes[position] = _decode(volume, config)

        decode_all(used, decode, "volumes", on_progress)
        if config.fit == "crop" and not _alike(sizes):
            raise DataError(
                f"{table}: fit = crop keeps the voxels, but their sizes differ: "
                f"{_sizes_in_words(used, sizes)}; bring the files to one voxel size, or stretch "
                "every volume to data.shape with data.fit=resample"
            )
        if config.harmonise:
            _harmonise(arrays, parts)

    arrays = cached(cache_dir, "volumes", key, build, on_progress)
    notes = [subjects_note(parts)]
    if not _alike(arrays[_SIZES]):
        notes.append(
            f"voxel sizes differ: {_sizes_in_words(used, arrays[_SIZES])}; fit = resample "
            f"stretches every volume to {config.shape} voxels whatever its size in mm"
        )
    empty = np.empty((0, *config.shape, 1), np.float32)
    train, validation, test = (
        Examples(
            arrays.get(name, empty),
            np.array([volume.label for volume in parts[name]], dtype=np.int32),
        )
        for name in PARTS
    )
    return Dataset(
        train, validation, test, classes=len(NAMES), class_names=NAMES, notes=tuple(notes)
    )


def _decode(volume: Volume, config: VolumesData) -> tuple[np.ndarray, np.ndarray]:
    """Decodes one volume.

    Returns:
      The voxels, float32 of the configured shape; and the (3,) sizes of the voxels in the file,
      in mm along the canonical axes.

    Raises:
      DataError: it cannot be read or used; the message names the file and its line in the table.
    """
    where = f"{volume.path} (line {volume.line})"
    try:
        image = nibabel.load(volume.path)
        if not isinstance(image, nibabel.Nifti1Image):  # as is its successor, NIfTI-2
            raise DataError(f"{where}: holds a {type(image).__name__}, not a volume")
        _check_header(image, where)
        # Before the voxels are read: a time series may be larger than memory.
        image = squeeze_image(image)
        if len(image.shape) != 3:
            raise DataError(f"{where}: has the shape {image.shape}; three dimensions are needed")
        canonical = nibabel.as_closest_canonical(image)
        sizes = voxel_sizes(canonical.affine)
        unit = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
        voxels = canonical.get_fdata(dtype=np.float32, caching="unchanged")
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from error
    except Exception as error:  # nibabel raises what gzip, NumPy and its own parsers raise
        raise DataError(
            f"{where}: cannot be read as NIfTI, or is cut short ({first_line(error)})"
        ) from error
    unusable = np.count_nonzero(~np.isfinite(voxels))
    if unusable:
        raise DataError(f"{where}: {unusable} of {voxels.size} voxels are NaN or infinite")
    fitted = _fit(_normalise(voxels, config.normalise, where), config.shape, config.fit)
    return fitted, sizes * unit


def _check_header(image: nibabel.Nifti1Image, where: str) -> None:
    """Refuses volumes that nibabel would convert with a loss, or cannot turn to any axes.

    Raises:
      DataError: saying what the file holds.
    """
    dtype, affine = image.get_data_dtype(), np.asarray(image.affine)
    if dtype.kind not in "biuf":
        kind = {"V": "colours (RGB)", "c": "complex numbers"}.get(dtype.kind, f"the type {dtype}")
        how = "the magnitude" if dtype.kind == "c" else "one channel"
        raise DataError(f"{where}: holds {kind}, not one real number per voxel; save {how} instead")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise DataError(
            f"{where}: its affine (sform or qform) is zero, singular or not finite, so that "
            "neither orientation nor voxel size is known; write the right one into the header"
        )


def _alike(sizes: np.ndarray) -> bool:
    """Returns whether (N, 3) voxel sizes are the same, up to rounding."""
    return bool((np.ptp(sizes, axis=0) <= _SAME_SIZE * sizes.min(axis=0)).all())


def _sizes_in_words(volumes: Sequence[Volume], sizes: np.ndarray) -> str:
    """Returns the voxel sizes with their numbers of volumes and one file each, as a message."""
    groups: dict[str, list[Volume]] = defaultdict(list)
    for volume, size in zip(volumes, sizes, strict=True):
        groups["x".join(f"{length:.3g}" for length in size)].append(volume)
    largest = sorted(groups, key=lambda size: -len(groups[size]))
    said = [f"{size} mm in {len(groups[size])} (as {groups[size][0].name})" for size in largest[:3]]
    more = f" and {len(largest) - 3} others" if len(largest) > 3 else ""
    return ", ".join(said) + more


def _normalise(voxels: np.ndarray, how: str, where: str) -> np.ndarray:
    """Brings values into [0, 1], float32."""
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
    """Brings a volume to the given shape."""
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


def _check_sites(parts: dict[str, list[Volume]], table: Path) -> None:
    """Checks that the sites can be harmonised on the training part.

    Raises:
      ConfigError: they cannot; the message says why.
    """
    missing = [volume.line for name in PARTS for volume in parts[name] if not volume.site]
    if missing:
        lines = ", ".join(str(line) for line in missing[:10])
        raise ConfigError(
            f"{table}: harmonise needs the column site, filled in every row; it is empty in "
            f"{len(missing)} (lines {lines}{', ...' if len(missing) > 10 else ''})"
        )
    sites = [volume.site for volume in parts["train"]]
    known = sorted(set(sites))
    if len(known) < 2:
        raise ConfigError(f"{table}: harmonise needs two sites or more for training, not {known}")
    single = [site for site in known if sites.count(site) < 2]
    if single:
        raise ConfigError(
            f"{table}: harmonise needs two training volumes per site; there is one of {single}"
        )
    for name in PARTS[1:]:
        strange = sorted({volume.site for volume in parts[name]} - set(known))
        if strange:
            raise ConfigError(
                f"{table}: harmonise cannot treat the sites {strange} of the {name} part, which "
                "are not in the training part"
            )


def _harmonise(arrays: dict[str, np.ndarray], parts: dict[str, list[Volume]]) -> None:
    """Fits on the training part, and changes all parts in place."""
    sites = {name: np.array([volume.site for volume in parts[name]]) for name in arrays}
    model = Combat.fit(arrays["train"], sites["train"])
    for name, volumes in arrays.items():
        model.apply(volumes, sites[name])
