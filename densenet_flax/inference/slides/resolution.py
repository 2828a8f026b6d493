"""Micrometers per pixel: what a file states, and whether it can be believed.

A magnification is not a resolution: 20X is 0.5 µm per pixel on one scanner and 0.25 on another. So
it is never turned into one.
"""

import math
import re
from collections.abc import Mapping

from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.common.micrometers import MPP_RANGE, are_within

# (y, x) in micrometers per pixel.
Mpp = tuple[float, float]

_LARGEST_RATIO = 1.1  # between two statements of one file, and between its axes

_MICROMETERS = {"inch": 25_400.0, "centimeter": 10_000.0}
_OME_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "": 1.0}
_TIFF_UNITS = {2: "inch", 3: "centimeter"}


def stated_by_slide(properties: Mapping[str, str]) -> dict[str, Mpp]:
    """What the properties of OpenSlide state, by the name of the field.

    OpenSlide takes one field of each format; others of the same file may contradict it.
    """
    unit = _MICROMETERS.get(properties.get("tiff.ResolutionUnit", ""), 0.0)
    x, y = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    description = properties.get("tiff.ImageDescription") or properties.get("openslide.comment", "")
    aperio = _number(properties.get("aperio.MPP"))
    openslide = (
        _number(properties.get("openslide.mpp-y")),
        _number(properties.get("openslide.mpp-x")),
    )
    statements = {
        "aperio.MPP": (aperio, aperio),
        "PhysicalSizeX of OME": _ome(description),
        "the TIFF tag XResolution": (unit / y, unit / x) if x and y else (0.0, 0.0),
        "openslide.mpp-x": openslide,
    }
    return {name: value for name, value in statements.items() if all(value)}


def stated_by_image(image: Image.Image) -> dict[str, Mpp]:
    """What the header of an opened image states, by the name of the field."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        unit = _MICROMETERS.get(_TIFF_UNITS.get(tags.get(296, 2), ""), 0.0)
        x, y = (_number(tags.get(tag)) for tag in (282, 283))
        statements = {"the TIFF tag XResolution": (unit / y, unit / x) if x and y else (0.0, 0.0)}
        statements["PhysicalSizeX of OME"] = _ome(str(tags.get(270, "")))
    else:
        dpi = image.info.get("dpi") or (0, 0)
        x, y = _number(dpi[0]), _number(dpi[1])
        name = f"the {'pHYs' if image.format == 'PNG' else 'density'} of its header"
        statements = {name: (25_400 / y, 25_400 / x) if x and y else (0.0, 0.0)}
    return {name: value for name, value in statements.items() if all(value)}


def resolve_mpp(name: object, statements: Mapping[str, Mpp], objective: float | None) -> Mpp:
    """The resolution that a file states.

    Raises:
      InputError: it states none, or two that contradict each other.
    """
    advice = "give the micrometers per pixel with --mpp=…"
    # Beyond the range are the 72 and 300 dpi of screens and printers.
    plausible = {field: mpp for field, mpp in statements.items() if are_within(MPP_RANGE, *mpp)}
    if not plausible:
        reasons = [
            f"{field} says {_show(mpp)} µm, which is no microscope's"
            for field, mpp in list(statements.items())[:1]
        ]
        if objective:
            reasons.append(f"its magnification, {objective:g}X, is not a resolution")
        shown = f" ({'; '.join(reasons)})" if reasons else ""
        raise InputError(f"{name}: states no micrometers per pixel{shown}; {advice}")
    (first, mpp), *others = plausible.items()
    for field, other in others:
        if any(_ratio(a, b) > _LARGEST_RATIO for a, b in zip(mpp, other, strict=True)):
            raise InputError(
                f"{name}: contradicts itself: {first} says {_show(mpp)} µm per pixel and {field} "
                f"{_show(other)}; {advice}, which is right"
            )
    if _ratio(*mpp) > _LARGEST_RATIO:
        raise InputError(
            f"{name}: {first} says {mpp[1]:.4g} µm per pixel across and {mpp[0]:.4g} down, and "
            f"microscopes have square pixels; {advice}, or with --mpp=DOWN,ACROSS if it is so"
        )
    return mpp


def check_mpp(mpp: Mpp | float, name: str = "--mpp") -> Mpp:
    """A resolution that was given, as (y, x); InputError if it cannot be one."""
    values = (mpp, mpp) if isinstance(mpp, int | float) else tuple(mpp)
    if len(values) != 2 or not are_within(MPP_RANGE, *values):
        raise InputError(
            f"{name}={mpp}: expected micrometers per pixel from {MPP_RANGE[0]:g} to "
            f"{MPP_RANGE[1]:g}, one number or two, down and across"
        )
    return float(values[0]), float(values[1])


def _ratio(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def _show(mpp: Mpp) -> str:
    return " by ".join(dict.fromkeys(f"{value:.4g}" for value in mpp))


def _number(value: object) -> float:
    """A positive number of any kind; 0 if it is none."""
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever the file holds
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if 0 < number < math.inf else 0.0


def _ome(description: str) -> Mpp:
    """The size of a pixel in OME-XML; zeros if there is none."""
    match = re.search(r"<(?:\w+:)?Pixels\s[^>]{1,2000}", description[:200_000])
    if not match:
        return 0.0, 0.0
    sizes = dict(re.findall(r"\sPhysicalSize([XY](?:Unit)?)=['\"]([^'\"]{1,40})['\"]", match[0]))
    y, x = (_number(sizes.get(k)) * _OME_UNITS.get(sizes.get(f"{k}Unit", ""), 0.0) for k in "YX")
    return y, x
