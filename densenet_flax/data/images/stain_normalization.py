"""Stain normalisation at decoding time, by libraries: one look for all tiles of a data set.

Settings are plain numbers and strings, so that they go into a checkpoint as JSON and a new image
is treated as the training images were. Libraries are imported when a method needs one.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.images import decode as images

METHODS = ("none", "channel", "reinhard", "macenko", "deconvolution", "clahe")
Normalizer = Callable[[np.ndarray], np.ndarray]

# Light that comes through an empty slide, and the density below which a pixel shows one: Macenko's.
_LIGHT, _EMPTY = 240, 0.15
# Hematoxylin and eosin as the channel-wise recipe writes them (Ruifrok and Johnston).
_HE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
_NATURAL = -np.log(1e-6)  # scikit-image's unit of density, in nepers
_MAXIMUM = (1.9705, 1.0308)  # Macenko's reference: the 99th percentile of each dye
_DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "channel": {"mean": None, "std": None},
    "reinhard": {"mean": None, "std": None},
    "macenko": {
        "stains": ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581)),
        "maximum": _MAXIMUM,
    },
    "deconvolution": {"maximum": _MAXIMUM},
    "clahe": {"clip": 2.0, "grid": 8},
}
_LARGEST_GRID = 256  # CLAHE keeps a histogram for each cell
_SHAPES = {"mean": (3,), "std": (3,), "stains": (3, 2), "maximum": (2,), "clip": (), "grid": ()}


def active(settings: Mapping[str, Any]) -> bool:
    """Whether the settings ask for any normalisation."""
    return settings.get("method", "none") != "none"


def resolve_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings as a user writes them to settings that say everything, in plain numbers.

    Args:
      settings: `method`, one of METHODS; `reference`, an image to take the numbers from, or the
        numbers themselves: `mean` and `std` ('channel': of R, G and B, 0 to 255; 'reinhard': of
        CIELAB), `stains` (3×2, 'macenko') and `maximum` ('macenko', 'deconvolution'); `clip` and
        `grid` ('clahe', in OpenCV's units); `min_tissue`, the share of a tile that must not be
        empty for it to be changed. What has a default may be left out.

    Returns:
      The same, complete, JSON-serialisable, without `reference`. {} if nothing is to be done.

    Raises:
      InputError: an unknown method or key, a number that makes no sense, a reference that cannot
        be read, or a library that is not installed.
    """
    given = {key: value for key, value in (settings or {}).items() if value not in ("", None, ())}
    method = given.pop("method", "none")
    if method not in METHODS:
        raise InputError(f"data.stain.method={method!r}: expected one of {', '.join(METHODS)}")
    if method == "none":
        return {}
    reference = given.pop("reference", None)
    min_tissue = given.pop("min_tissue", 0.05)
    if not isinstance(min_tissue, int | float) or not 0 <= min_tissue <= 1:
        raise InputError(f"data.stain.min_tissue={min_tissue}: expected a share from 0 to 1")
    defaults = _DEFAULTS[method]
    for key in given.keys() - defaults.keys():
        raise InputError(
            f"data.stain.{key}: {method} has no such setting; it has {', '.join(defaults)}"
        )
    numbers: dict[str, Any] = {**defaults, **given}
    if reference is not None:
        if method == "clahe":
            raise InputError("data.stain.reference: clahe has no reference; remove it")
        path = Path(reference).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"data.stain.reference={path}: cannot be read ({error.strerror or error})"
            ) from error
        pixels = images.decode(data, path)
        if not _has_tissue(pixels, min_tissue):
            raise InputError(f"data.stain.reference={path}: shows no tissue; choose another tile")
        numbers |= _measure(method, pixels)
    resolved: dict[str, Any] = {"method": method}
    for key, value in numbers.items():
        if value is None:
            raise InputError(
                f"data.stain.{key}: {method} needs a reference; give data.stain.reference, an "
                "image, or the numbers mean and std"
            )
        try:
            array = np.asarray(value, float)
        except (TypeError, ValueError):
            array = np.full(1, np.nan)
        low = -np.inf if key in ("mean", "stains") else 0
        if array.shape != _SHAPES[key] or not np.isfinite(array).all() or not (array > low).all():
            raise InputError(
                f"data.stain.{key}={value}: expected {'x'.join(map(str, _SHAPES[key])) or 'one'} "
                "number(s)" + (" above 0" if low == 0 else "")
            )
        if key == "grid" and not 1 <= array <= _LARGEST_GRID:
            raise InputError(
                f"data.stain.grid={value}: expected a number from 1 to {_LARGEST_GRID}"
            )
        resolved[key] = array.tolist()
    return json.loads(json.dumps({**resolved, "min_tissue": float(min_tissue)}))


def make_normalizer(settings: Mapping[str, Any]) -> Normalizer:
    """A function from uint8 [H, W, 3] to the same, normalised; safe to call from threads.

    A tile with hardly any tissue, or all of one colour, comes back as it is: there is nothing in it
    to estimate a stain from, and the methods would turn its noise into colour.

    Args:
      settings: what `resolve_settings` returned.

    Raises:
      InputError: a library is not installed.
    """
    if not active(settings):
        return lambda pixels: pixels
    change = _METHODS[settings["method"]](settings)
    min_tissue = settings["min_tissue"]

    def normalize(pixels: np.ndarray) -> np.ndarray:
        if not _has_tissue(pixels, min_tissue):
            return pixels
        try:
            with np.errstate(all="ignore"):
                return change(pixels)
        except np.linalg.LinAlgError:
            return pixels

    return normalize


def _has_tissue(pixels: np.ndarray, share: float) -> bool:
    density = -np.log((pixels.reshape(-1, 3).astype(np.float32) + 1) / _LIGHT)
    stained = ~np.any(density < _EMPTY, axis=1)
    if np.count_nonzero(stained) < max(16, share * len(density)):
        return False
    # Of one colour there are no two stains to tell apart, and no spread to divide by.
    return bool(density[stained].std(0).max() > 0.02)


def _channel(settings: Mapping[str, Any]) -> Normalizer:
    mean, std = (np.array(settings[key], np.float32) for key in ("mean", "std"))

    def change(pixels: np.ndarray) -> np.ndarray:
        flat = pixels.reshape(-1, 3).astype(np.float32)
        spread = np.maximum(flat.std(0), 1e-3)
        return _to_bytes((pixels - flat.mean(0)) / spread * std + mean)

    return change


def _reinhard(settings: Mapping[str, Any]) -> Normalizer:
    library = _library("torchstain").normalizers.ReinhardNormalizer(backend="numpy")
    library.target_means = np.array(settings["mean"], np.float32)
    library.target_stds = np.array(settings["std"], np.float32)

    def change(pixels: np.ndarray) -> np.ndarray:
        if pixels.reshape(-1, 3).std(0).min() == 0:
            return pixels
        return library.normalize(pixels)

    return change


def _macenko(settings: Mapping[str, Any]) -> Normalizer:
    library = _library("torchstain").normalizers.MacenkoNormalizer(backend="numpy")
    library.HERef, library.maxCRef = (np.array(settings[key]) for key in ("stains", "maximum"))

    def change(pixels: np.ndarray) -> np.ndarray:
        return library.normalize(pixels, stains=False)[0]

    return change


def _deconvolution(settings: Mapping[str, Any]) -> Normalizer:
    colour, matrix = _library("skimage.color"), _stain_matrix()
    wanted = np.array(settings["maximum"])

    def change(pixels: np.ndarray) -> np.ndarray:
        stains = colour.separate_stains(pixels, np.linalg.inv(matrix))
        found = _maximum(stains)
        if found.min() < 0.05:  # a dye that is not there cannot be brought to a strength
            return pixels
        stains[..., :2] *= wanted / found
        return _to_bytes(colour.combine_stains(stains, matrix) * 255)

    return change


def _clahe(settings: Mapping[str, Any]) -> Normalizer:
    colour, exposure = _library("skimage.color"), _library("skimage.exposure")
    grid = int(settings["grid"])

    def change(pixels: np.ndarray) -> np.ndarray:
        lab = colour.rgb2lab(pixels)
        kernel = [max(side // grid, 1) for side in pixels.shape[:2]]
        # OpenCV states the limit as a multiple of the mean of 256 bins, scikit-image as a share.
        light = exposure.equalize_adapthist(
            np.clip(lab[..., 0] / 100, 0, 1), kernel, settings["clip"] / 256, nbins=256
        )
        lab[..., 0] = light * 100
        return _to_bytes(colour.lab2rgb(lab) * 255)

    return change


_METHODS: dict[str, Callable[[Mapping[str, Any]], Normalizer]] = {
    "channel": _channel,
    "reinhard": _reinhard,
    "macenko": _macenko,
    "deconvolution": _deconvolution,
    "clahe": _clahe,
}


def _measure(method: str, pixels: np.ndarray) -> dict[str, Any]:
    """The numbers of a method that make its result look like this image."""
    if method == "channel":
        flat = pixels.reshape(-1, 3)
        return {"mean": flat.mean(0), "std": flat.std(0)}
    if method == "deconvolution":
        inverse = np.linalg.inv(_stain_matrix())
        return {"maximum": _maximum(_library("skimage.color").separate_stains(pixels, inverse))}
    normalizers = _library("torchstain").normalizers
    if method == "reinhard":
        library = normalizers.ReinhardNormalizer(backend="numpy")
        library.fit(pixels)
        return {"mean": library.target_means, "std": library.target_stds}
    library = normalizers.MacenkoNormalizer(backend="numpy")
    library.fit(pixels)
    return {"stains": library.HERef, "maximum": library.maxCRef}


def _stain_matrix() -> np.ndarray:
    """Hematoxylin, eosin and what is neither, as rows."""
    rest = np.cross(*_HE)
    return np.array([*_HE, rest / np.linalg.norm(rest)])


def _maximum(stains: np.ndarray) -> np.ndarray:
    """The strength of each dye where it is strong, in nepers."""
    return np.percentile(stains[..., :2].reshape(-1, 2), 99, axis=0) * _NATURAL


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"skimage": "scikit-image"}.get(name.partition(".")[0], name)
        raise InputError(
            f"data.stain needs {package}, which is not installed: "
            "pip install 'densenet_flax[stain]'"
        ) from error
