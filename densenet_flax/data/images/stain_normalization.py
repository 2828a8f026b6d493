"""Stain normalization: one look for all tiles of a data set, applied when they are decoded.

Settings are plain numbers and strings, so that they go into a checkpoint as JSON and a new image
is treated as the training images were. To add a method, add it to `_METHODS`; several are applied
in a row with `+` between their names. Libraries are imported when a method needs one.
"""

import collections
import importlib
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import suggest
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.decode import decode
from densenet_flax.data.images.formats import read_image_file

Pixels: TypeAlias = UInt8[np.ndarray, "H W 3"]
Normalizer: TypeAlias = Callable[[Pixels], Pixels]
Settings: TypeAlias = Mapping[str, Any]

# Of Macenko et al.: the light through an empty slide, and the optical density below which a pixel
# counts as empty.
_LIGHT, _EMPTY = 240, 0.15
# Hematoxylin and eosin of Ruifrok and Johnston, and what is neither, as rows.
_HE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
_STAIN_MATRIX = np.array([*_HE, np.cross(*_HE) / np.linalg.norm(np.cross(*_HE))])
# scikit-image divides optical densities by log(1e-6); this brings them back to nepers.
_SKIMAGE_UNIT = -np.log(1e-6)
# Macenko's reference: the directions of the two dyes, and the 99th percentile of each.
_MACENKO_STAINS = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))
_MACENKO_MAXIMUM = (1.9705, 1.0308)
_LARGEST_GRID = 256  # CLAHE keeps a histogram for each cell
_SHAPES = {"mean": (3,), "std": (3,), "stains": (3, 2), "maximum": (2,), "clip": (), "grid": ()}
_MAY_BE_NEGATIVE = ("mean", "stains")
_DEFAULT_MIN_TISSUE = 0.05


def resolve_settings(settings: Settings | None, *, measure: bool = True) -> JsonDict:
    """Completes the settings that a user writes, in plain numbers.

    Args:
      settings: `method`, one of METHODS, or several in the order in which they are applied, such as
        'channel+clahe'; `reference`, an image to take the numbers from, or the
        numbers themselves: `mean` and `std` ('channel': of R, G and B, 0 to 255; 'reinhard': of
        CIELAB), `stains` (3×2, 'macenko') and `maximum` ('macenko', 'deconvolution'); `clip` and
        `grid` ('clahe', in OpenCV's units); `min_tissue`, the least share of a tile that must not
        be empty for it to be changed. What has a default may be left out. A number that two of the
        methods have is named with its method, as `channel_mean`.

      measure: whether to read the reference; if not, what it decides is missing in the result.

    Returns:
      All settings of the methods but `reference`, JSON-serializable; {} for the method 'none'.

    Raises:
      InputError: an unknown method or key, a number out of range, a reference that cannot be read,
        or a library that is not installed.
    """
    given = {key: value for key, value in (settings or {}).items() if value not in ("", None, ())}
    for key in given:
        if key not in STAIN_KEYS:
            raise InputError(f"data.stain.{key}: no such key; {suggest(key, STAIN_KEYS)}")
    name = given.pop("method", "none")
    names = _split_names(name)
    if not names:
        return {}
    min_tissue = given.pop("min_tissue", _DEFAULT_MIN_TISSUE)
    if not isinstance(min_tissue, int | float) or not 0 <= min_tissue <= 1:
        raise InputError(f"data.stain.min_tissue={min_tissue}: expected a share from 0 to 1")
    reference = given.pop("reference", None)
    measures = {n: function for n in names if (function := _METHODS[n].measure)}
    if reference is not None and not measures:
        raise InputError(f"data.stain.reference: {name} has no reference; remove it")
    keys = _setting_keys(names)
    _check_keys(given, name, keys)
    numbers = {
        key: given.get(key, _METHODS[method].defaults[own]) for key, (method, own) in keys.items()
    }
    if reference is not None and measure:
        # Each method's goal is the reference as it is: the look that tiles shall have.
        pixels = _read_reference(reference, min_tissue)
        values = {method: function(pixels) for method, function in measures.items()}
        numbers |= {key: values[m][own] for key, (m, own) in keys.items() if m in values}
    elif reference is not None:
        numbers = {key: value for key, value in numbers.items() if value is not None}
    missing = [key for key, value in numbers.items() if value is None]
    if missing:
        raise InputError(
            f"data.stain.{missing[0]}: {keys[missing[0]][0]} needs a reference; give "
            f"data.stain.reference, an image, or the numbers {' and '.join(missing)}"
        )
    plain = {key: _to_plain_numbers(key, keys[key][1], value) for key, value in numbers.items()}
    # Through JSON once, so that settings are equal to those that a checkpoint holds.
    return json.loads(json.dumps({"method": name, **plain, "min_tissue": float(min_tissue)}))


def make_normalizer(settings: Settings) -> Normalizer:
    """Returns a function that normalizes one image, by settings from `resolve_settings`.

    It is safe to call from threads. Tiles with hardly any tissue, or of a single color, stay as
    they are. Several methods act one after the other, each on what the one before it returned.

    Raises:
      InputError: a library is not installed.
    """
    if not settings:
        return lambda pixels: pixels
    names = _split_names(settings["method"])
    own: dict[str, JsonDict] = {name: {} for name in names}
    for key, (name, own_key) in _setting_keys(names).items():
        own[name][own_key] = settings[key]
    changes = [_METHODS[name].make(own[name]) for name in names]
    min_tissue = settings["min_tissue"]

    def normalize(pixels: Pixels) -> Pixels:
        for change in changes:
            # There is nothing to estimate a stain from, and a method would turn noise into color.
            if not _has_tissue(pixels, min_tissue):
                return pixels
            try:
                with np.errstate(all="ignore"):
                    pixels = change(pixels)
            except np.linalg.LinAlgError:
                continue
        return pixels

    return normalize


def separate_dyes(
    pixels: UInt8[np.ndarray, "... 3"], settings: Settings
) -> tuple[UInt8[np.ndarray, "... 3"], ...]:
    """What hematoxylin, eosin and the residual each look like alone, as scikit-image's pictures.

    The dyes are told apart by color deconvolution (Ruifrok and Johnston 2001). The residual is
    what the two colors cannot explain: pigment, red cells, pen, another dye, or dyes of other
    colors. It is gray, the darker the more, in either direction.

    Args:
      pixels: images as they are after normalization.
      settings: of the normalization, from `resolve_settings`. With 'macenko' the colors of the dyes
        are its `stains`, else those of Ruifrok and Johnston.
    """
    he = np.array(settings["stains"]).T if "stains" in settings else np.array(_HE)
    he = he / np.linalg.norm(he, axis=1, keepdims=True)
    residual = np.cross(*he) / np.linalg.norm(np.cross(*he))
    density = -np.log(np.maximum(pixels / 255, 1 / 255))
    amounts = density @ np.linalg.inv(np.stack([*he, residual]))
    # Less than none of a dye cannot be seen.
    alone = [np.maximum(amounts[..., i, None], 0) * he[i] for i in range(2)]
    gray = np.abs(amounts[..., 2:]) * np.ones(3)
    return tuple(_to_uint8(255 * np.exp(-x)) for x in (*alone, gray))


def _split_names(name: Any) -> list[str]:
    """The methods that `method` names, in their order; none for 'none'."""
    names = str(name).split("+")
    if names == ["none"]:
        return []
    if any(method not in _METHODS for method in names) or len(set(names)) < len(names):
        raise InputError(
            f"data.stain.method={name!r}: expected one of {', '.join(METHODS)}, or different ones "
            "in a row, such as 'channel+clahe'"
        )
    return names


def _setting_keys(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What the settings of methods in a row are called: (method, key of that method) by name."""
    pairs = [(name, key) for name in names for key in _METHODS[name].defaults]
    counts = collections.Counter(key for _, key in pairs)
    return {f"{name}_{key}" if counts[key] > 1 else key: (name, key) for name, key in pairs}


def _check_keys(given: Settings, name: str, keys: Mapping[str, tuple[str, str]]) -> None:
    for key in given.keys() - keys.keys():
        longer = [full for full, (_, own) in keys.items() if own == key]
        advice = f"give {' and '.join(longer)}" if longer else f"it has {', '.join(keys)}"
        raise InputError(f"data.stain.{key}: {name} has no such setting; {advice}")


def _read_reference(reference: str, min_tissue: float) -> Pixels:
    path = Path(reference).expanduser()
    pixels = decode(read_image_file(path, f"data.stain.reference={path}"), path)
    if not _has_tissue(pixels, min_tissue):
        raise InputError(f"data.stain.reference={path}: shows no tissue; choose another tile")
    return pixels


def _to_plain_numbers(name: str, key: str, value: Any) -> Any:
    """Checks the value of a setting `name`, a method's `key`; a number or nested lists."""
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)  # has no setting's shape, so that it is rejected below
    low = -np.inf if key in _MAY_BE_NEGATIVE else 0
    if array.shape != _SHAPES[key] or not np.isfinite(array).all() or not (array > low).all():
        count = "x".join(map(str, _SHAPES[key])) or "one"
        minimum = " above 0" if low == 0 else ""
        raise InputError(f"data.stain.{name}={value}: expected {count} number(s){minimum}")
    if key == "grid" and not 1 <= array <= _LARGEST_GRID:
        raise InputError(f"data.stain.{name}={value}: expected a number from 1 to {_LARGEST_GRID}")
    return array.tolist()


def _has_tissue(pixels: Pixels, min_share: float) -> bool:
    density = -np.log((pixels.reshape(-1, 3).astype(np.float32) + 1) / _LIGHT)
    stained = ~np.any(density < _EMPTY, axis=1)
    if np.count_nonzero(stained) < max(16, min_share * len(density)):
        return False
    # In a single color there are no two stains to tell apart, and no deviation to divide by.
    return bool(density[stained].std(0).max() > 0.02)


def _channel(settings: Settings) -> Normalizer:
    """Gives each of R, G and B a mean and a standard deviation."""
    mean, std = (np.array(settings[key], np.float32) for key in ("mean", "std"))

    def change(pixels: Pixels) -> Pixels:
        flat = pixels.reshape(-1, 3).astype(np.float32)
        own_std = np.maximum(flat.std(0), 1e-3)  # a constant channel stays finite
        return _to_uint8((pixels - flat.mean(0)) / own_std * std + mean)

    return change


def _measure_channel(pixels: Pixels) -> dict[str, np.ndarray]:
    flat = pixels.reshape(-1, 3)
    return {"mean": flat.mean(0), "std": flat.std(0)}


def _reinhard(settings: Settings) -> Normalizer:
    """Gives each channel of CIELAB a mean and a standard deviation (Reinhard et al. 2001)."""
    normalizer = _torchstain("ReinhardNormalizer")
    normalizer.target_means = np.array(settings["mean"], np.float32)
    normalizer.target_stds = np.array(settings["std"], np.float32)

    def change(pixels: Pixels) -> Pixels:
        if pixels.reshape(-1, 3).std(0).min() == 0:  # torchstain divides by it
            return pixels
        return normalizer.normalize(pixels)

    return change


def _measure_reinhard(pixels: Pixels) -> dict[str, np.ndarray]:
    normalizer = _torchstain("ReinhardNormalizer")
    normalizer.fit(pixels)
    return {"mean": normalizer.target_means, "std": normalizer.target_stds}


def _macenko(settings: Settings) -> Normalizer:
    """Exchanges the two dyes estimated from a tile for given ones (Macenko et al. 2009)."""
    normalizer = _torchstain("MacenkoNormalizer")
    normalizer.HERef = np.array(settings["stains"])
    normalizer.maxCRef = np.array(settings["maximum"])
    return lambda pixels: normalizer.normalize(pixels, stains=False)[0]


def _measure_macenko(pixels: Pixels) -> dict[str, np.ndarray]:
    normalizer = _torchstain("MacenkoNormalizer")
    normalizer.fit(pixels)
    return {"stains": normalizer.HERef, "maximum": normalizer.maxCRef}


def _deconvolution(settings: Settings) -> Normalizer:
    """Scales hematoxylin and eosin, of known colors (Ruifrok and Johnston 2001), to a strength."""
    color, maximum = _library("skimage.color"), np.array(settings["maximum"])

    def change(pixels: Pixels) -> Pixels:
        stains = color.separate_stains(pixels, np.linalg.inv(_STAIN_MATRIX))
        own_maximum = _maximum(stains)
        if own_maximum.min() < 0.05:  # a dye that is not there cannot be scaled to a strength
            return pixels
        stains[..., :2] *= maximum / own_maximum
        return _to_uint8(color.combine_stains(stains, _STAIN_MATRIX) * 255)

    return change


def _measure_deconvolution(pixels: Pixels) -> dict[str, np.ndarray]:
    color = _library("skimage.color")
    return {"maximum": _maximum(color.separate_stains(pixels, np.linalg.inv(_STAIN_MATRIX)))}


def _clahe(settings: Settings) -> Normalizer:
    """Equalizes lightness in cells of a grid, with limited contrast (Zuiderveld 1994)."""
    color, exposure = _library("skimage.color"), _library("skimage.exposure")
    grid = int(settings["grid"])

    def change(pixels: Pixels) -> Pixels:
        lab = color.rgb2lab(pixels)
        cell = [max(length // grid, 1) for length in pixels.shape[:2]]
        # OpenCV states the limit as a multiple of the mean of 256 bins, scikit-image as a share.
        lightness = exposure.equalize_adapthist(
            np.clip(lab[..., 0] / 100, 0, 1), cell, settings["clip"] / 256, nbins=256
        )
        lab[..., 0] = lightness * 100
        return _to_uint8(color.lab2rgb(lab) * 255)

    return change


def _maximum(stains: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "2"]:
    """The strength of each dye where it is strong, in nepers."""
    return np.percentile(stains[..., :2].reshape(-1, 2), 99, axis=0) * _SKIMAGE_UNIT


def _to_uint8(values: Float[np.ndarray, "H W 3"]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _torchstain(name: str) -> Any:
    return getattr(_library("torchstain").normalizers, name)(backend="numpy")


def _library(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"skimage": "scikit-image"}.get(name.partition(".")[0], name)
        raise InputError(
            f"data.stain needs {package}, which is not installed: "
            "pip install 'densenet_flax[stain]'"
        ) from error


class _Method(NamedTuple):
    defaults: Settings  # None for what a reference or the user must give
    make: Callable[[Settings], Normalizer]  # from complete settings
    # Measures settings on a reference image; None if the method has no reference.
    measure: Callable[[Pixels], dict[str, np.ndarray]] | None = None


_METHODS = {
    "channel": _Method({"mean": None, "std": None}, _channel, _measure_channel),
    "reinhard": _Method({"mean": None, "std": None}, _reinhard, _measure_reinhard),
    "macenko": _Method(
        {"stains": _MACENKO_STAINS, "maximum": _MACENKO_MAXIMUM}, _macenko, _measure_macenko
    ),
    "deconvolution": _Method({"maximum": _MACENKO_MAXIMUM}, _deconvolution, _measure_deconvolution),
    "clahe": _Method({"clip": 2.0, "grid": 8}, _clahe),
}
METHODS = ("none", *_METHODS)
# With the names of what two methods have, for a row of both.
STAIN_KEYS = tuple(
    dict.fromkeys(["method", "reference", *_SHAPES, *_setting_keys(tuple(_METHODS)), "min_tissue"])
)
