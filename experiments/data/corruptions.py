"""Corrupts images and volumes as a camera, a file format or the weather would.

The kinds follow Hendrycks & Dietterich 2019 (arXiv 1903.12261); code and strengths are our own.
Every function takes one image (..., C) of float32 in [0, 1], a severity from 1 to 3 and a seed,
and returns another such image; the same arguments give the same image.  Lengths are shares of the
image's shorter side, so that a severity means the same picture at every size; what acts on single
values (noise) or on the image's own detail (pixelate, jpeg) does not depend on the size.

Packages were looked at first.  ``imagecorruptions`` refuses images below 32 pixels and volumes, and
calls functions that NumPy 2 and today's scikit-image no longer have; augmax and dm-pix are for
augmentation and have neither severities nor JPEG, fog and shot noise.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage, signal, special

SEVERITIES = (1, 2, 3)

Apply = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
      name: what tables call it.
      strengths: for severities 1, 2 and 3.
      unit: what a strength is.
      apply: function of an image (..., C), a strength and a generator of random numbers; values
        outside [0, 1] are cut off afterwards.
      planar: it needs an image (H, W, C) with 1 or 3 channels.
      colour: it needs three channels.
      moves: it moves what is seen, so that labels of pixels no longer fit.
    """

    name: str
    strengths: tuple[float, float, float]
    unit: str
    apply: Apply
    planar: bool = False
    colour: bool = False
    moves: bool = False

    def fits(self, shape: Sequence[int], *, pixel_labels: bool = False) -> bool:
        """Returns whether it can be done to an image of this shape.

        Args:
          shape: (..., C).
          pixel_labels: whether every pixel has a label.
        """
        if self.planar and (len(shape) != 3 or shape[-1] not in (1, 3)):
            return False
        if self.colour and shape[-1] != 3:
            return False
        return not (self.moves and pixel_labels)


def corrupt(image: np.ndarray, name: str, severity: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Returns a corrupted copy of an image.

    Args:
      image: (H, W, C) or (D, H, W, C), float32 in [0, 1].
      name: one of ``CORRUPTIONS``.
      severity: 1, 2 or 3.
      seed: of what is random about it, at least 0; or several, such as one of a data set and the
        image's number.  Kinds and severities draw independently.

    Returns:
      An image of the same shape, float32 in [0, 1].

    Raises:
      ValueError: an unknown kind or severity, another dtype or range, or a kind that does not
        exist for images of this shape.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}; expected one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1, 2 or 3; got {severity!r}")
    kind = CORRUPTIONS[name]
    if image.dtype != np.float32 or image.ndim not in (3, 4):
        raise ValueError(
            f"expected an image (H, W, C) or a volume (D, H, W, C) of float32; got "
            f"{image.dtype} of shape {image.shape}"
        )
    if not (image.min() >= 0 and image.max() <= 1):  # so that NaN is refused too
        raise ValueError(f"values must lie in [0, 1]; got {image.min():.3g} to {image.max():.3g}")
    if not kind.fits(image.shape):
        needs = "3 channels" if kind.colour else "an image (H, W, C) with 1 or 3 channels"
        raise ValueError(f"{name} needs {needs}; got shape {image.shape}")
    seeds = seed if isinstance(seed, tuple) else (seed,)
    generator = np.random.default_rng((*seeds, _stream(name), severity))
    changed = kind.apply(image, kind.strengths[severity - 1], generator)
    return np.clip(changed, 0, 1).astype(np.float32)


def corrupt_all(images: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """Returns corrupted copies of images (N, ..., C), each with a seed of its own.

    Args:
      images: float32 in [0, 1], or uint8 standing for value / 255.
      name: one of ``CORRUPTIONS``.
      severity: 1, 2 or 3.
      seed: of them all; image i is the same whatever stands beside it.

    Returns:
      float32 in [0, 1], (N, ..., C).
    """
    result = np.empty(images.shape, np.float32)
    for i, image in enumerate(images):
        values = image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
        result[i] = corrupt(values, name, severity, (seed, i))
    return result


def fitting(shape: Sequence[int], *, pixel_labels: bool = False) -> list[str]:
    """Returns the names of the kinds that can be done to images of a shape (..., C)."""
    return [n for n, kind in CORRUPTIONS.items() if kind.fits(shape, pixel_labels=pixel_labels)]


def _stream(name: str) -> int:
    """Returns the same stream of random numbers for a kind, whatever other kinds there are."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)


def _gaussian_noise(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return x + strength * random.standard_normal(x.shape)


def _shot_noise(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return random.poisson(x * strength) / strength


def _speckle_noise(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return x * (1 + strength * random.standard_normal(x.shape))


def _impulse_noise(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    hit = random.random(x.shape) < strength
    return np.where(hit, random.integers(0, 2, x.shape), x)


def _gaussian_blur(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    sigma = strength * _side(x)
    reach = max(1, int(np.ceil(4 * sigma)))
    # Integrated over each pixel: sampled, a sigma below half a pixel would do nothing.
    kernel = np.diff(special.ndtr((np.arange(-reach, reach + 2) - 0.5) / sigma))
    for axis in _positions(x):
        x = ndimage.correlate1d(x, kernel / kernel.sum(), axis, mode="nearest")
    return x


def _motion_blur(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Averages over a straight path, centred on each pixel, in one random direction."""
    dimensions = x.ndim - 1
    direction = random.standard_normal(dimensions)
    direction /= np.linalg.norm(direction)
    length = strength * _side(x)
    reach = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * reach + 1,) * dimensions)
    for place in np.linspace(-length / 2, length / 2, 8 * reach + 1):
        # Shared among the pixels around the place, as in linear interpolation.
        low = np.floor(place * direction).astype(int)
        share = place * direction - low
        for corner in np.ndindex((2,) * dimensions):
            weight = np.prod(np.where(corner, share, 1 - share))
            kernel[tuple(reach + low + corner)] += weight
    kernel /= kernel.sum()
    padded = np.pad(x, [(reach, reach)] * dimensions + [(0, 0)], mode="edge")
    return signal.oaconvolve(padded, kernel[..., None], "valid", axes=range(dimensions))


def _contrast(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    centre = x.mean(axis=_positions(x), keepdims=True)
    return centre + strength * (x - centre)


def _brightness(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return x + strength


def _darkness(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return strength * x


def _fog(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Mixes with white, by an amount that varies over the image like a cloud.

    The cloud's amplitude falls with the square of the frequency; it goes from half of ``strength``
    to all of it.
    """
    shape = x.shape[:-1]
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) * _side(x) for n in shape), indexing="ij")
    squared = sum(f**2 for f in frequencies)
    waves = np.fft.fftn(random.standard_normal(shape)) / np.maximum(squared, 0.25)
    cloud: np.ndarray = np.fft.ifftn(waves).real
    cloud = (cloud - cloud.min()) / max(float(np.ptp(cloud)), 1e-12)
    amount = (strength * (0.5 + 0.5 * cloud))[..., None]
    return x + amount * (1 - x)


def _pixelate(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Averages over cells; a row or column belongs to the cell that holds its middle."""
    for axis, size in enumerate(x.shape[:-1]):
        cells = max(1, round(strength * size))
        cell = (np.arange(size) * 2 + 1) * cells // (2 * size)
        starts = np.searchsorted(cell, np.arange(cells))
        sizes = np.bincount(cell, minlength=cells)
        means = np.add.reduceat(x, starts, axis=axis)
        means = means / np.expand_dims(sizes, tuple(a for a in range(x.ndim) if a != axis))
        x = np.repeat(means, sizes, axis=axis)
    return x


def _jpeg(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    values = np.round(255 * x).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values[..., 0] if x.shape[-1] == 1 else values).save(
        file, "JPEG", quality=int(strength)
    )
    decoded = np.asarray(Image.open(file), np.float32) / 255
    return decoded.reshape(x.shape)


def _desaturate(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]  # ITU-R BT.601
    return grey + strength * (x - grey)


def _elastic(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Moves pixels by a smooth random field with a root mean square of ``strength`` per axis."""
    shape = x.shape[:-1]
    places = np.indices(shape, np.float64)
    for i in range(len(shape)):
        field = ndimage.gaussian_filter(random.standard_normal(shape), 0.1 * _side(x), mode="wrap")
        rms = max(float(np.sqrt(np.mean(field**2))), 1e-12)
        places[i] += strength * _side(x) / rms * field
    channels = [
        ndimage.map_coordinates(x[..., c], places, order=1, mode="nearest")
        for c in range(x.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def _side(x: np.ndarray) -> int:
    """Returns the shorter side, in pixels."""
    return min(x.shape[:-1])


def _positions(x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


_KINDS = (
    Corruption(
        "gaussian_noise", (0.05, 0.1, 0.2), "standard deviation, image range 1", _gaussian_noise
    ),
    Corruption("shot_noise", (60, 25, 10), "photons of a white value", _shot_noise),
    Corruption("speckle_noise", (0.15, 0.3, 0.5), "standard deviation / value", _speckle_noise),
    Corruption("impulse_noise", (0.02, 0.06, 0.15), "share of values made 0 or 1", _impulse_noise),
    Corruption("gaussian_blur", (0.03, 0.05, 0.08), "sigma / shorter side", _gaussian_blur),
    Corruption("motion_blur", (0.1, 0.2, 0.3), "length of the path / shorter side", _motion_blur),
    Corruption("contrast", (0.6, 0.4, 0.2), "share of the contrast that is left", _contrast),
    Corruption("brightness", (0.1, 0.2, 0.35), "added, image range 1", _brightness),
    Corruption("darkness", (0.7, 0.5, 0.3), "share of the light that is left", _darkness),
    Corruption("fog", (0.4, 0.6, 0.8), "share of white where fog is thickest", _fog),
    Corruption("pixelate", (0.7, 0.5, 0.35), "share of the resolution that is left", _pixelate),
    Corruption("jpeg", (40, 20, 8), "quality, as libjpeg counts", _jpeg, planar=True),
    Corruption(
        "desaturate",
        (0.6, 0.3, 0.0),
        "share of the colour that is left",
        _desaturate,
        planar=True,
        colour=True,
    ),
    Corruption("elastic", (0.02, 0.035, 0.05), "displacement / shorter side", _elastic, moves=True),
)
CORRUPTIONS = {kind.name: kind for kind in _KINDS}
"""All kinds by name.  Grey images have 13 of the 14, volumes 12; 13 where pixels have labels."""
