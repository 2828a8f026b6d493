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


def describe_difference(pairs: Iterable[tuple[str, int]], magnification: int = 0) -> str:
    """Says in one line what is missing or too much; '' if BreakHis is complete.

    Args:
      pairs: subtype and magnification of each image there is.
      magnification: the one that was asked for, 0 for all.
    """
    there = Counter((subtype, int(power)) for subtype, power in pairs)
    known = {
        (subtype, power): count
        for subtype, counts in KNOWN.items()
        for power, count in zip(MAGNIFICATIONS, counts, strict=True)
        if magnification in (0, power)
    }
    parts = []
    for sign, word in ((1, "missing"), (-1, "beyond the known")):
        lines = []
        for subtype in KNOWN:
            powers = [
                f"{power}X {off}"
                for power in MAGNIFICATIONS
                if (off := sign * (known.get((subtype, power), 0) - there[subtype, power])) > 0
            ]
            if powers:
                lines.append(f"{subtype} {' '.join(powers)}")
        if lines:
            parts.append(f"{word}: {', '.join(lines)}")
    if not parts:
        return ""
    return f"{sum(there.values())} of {sum(known.values())} images; {'; '.join(parts)}"
