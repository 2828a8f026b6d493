"""How many images BreakHis has, and what of it is missing on a disk."""

from collections import Counter
from collections.abc import Iterable

from densenet_flax.data.breakhis.names import MAGNIFICATIONS

# Images per subtype at 40, 100, 200 and 400X: 7,909 in all.
KNOWN = {
    "adenosis": (114, 113, 111, 106),
    "fibroadenoma": (253, 260, 264, 237),
    "phyllodes_tumor": (109, 121, 108, 115),
    "tubular_adenoma": (149, 150, 140, 130),
    "ductal_carcinoma": (864, 903, 896, 788),
    "lobular_carcinoma": (156, 170, 163, 137),
    "mucinous_carcinoma": (205, 222, 196, 169),
    "papillary_carcinoma": (145, 142, 135, 138),
}


def describe_difference(tiles: Iterable[tuple[str, int]], magnification: int = 0) -> str:
    """Says in one line what is missing or too much; '' if BreakHis is complete.

    Args:
      tiles: subtype and magnification of each image that there is.
      magnification: the only one that is expected, or 0 for all.
    """
    actual = Counter((subtype, int(power)) for subtype, power in tiles)
    expected = Counter(
        {
            (subtype, power): count
            for subtype, counts in KNOWN.items()
            for power, count in zip(MAGNIFICATIONS, counts, strict=True)
            if magnification in (0, power)
        }
    )
    missing, extra = _list_counts(expected - actual), _list_counts(actual - expected)
    parts = [f"missing: {missing}"] if missing else []
    parts += [f"beyond the known: {extra}"] if extra else []
    return f"{actual.total()} of {expected.total()} images; {'; '.join(parts)}" if parts else ""


def _list_counts(counts: Counter[tuple[str, int]]) -> str:
    lines = []
    for subtype in KNOWN:
        powers = [power for power in MAGNIFICATIONS if counts[subtype, power]]
        if powers:
            lines.append(" ".join([subtype, *(f"{p}X {counts[subtype, p]}" for p in powers)]))
    return ", ".join(lines)
