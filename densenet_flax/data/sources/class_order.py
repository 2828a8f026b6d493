"""The order of classes that nobody stated: of two, the second one is looked for."""

import re
from collections.abc import Collection

from densenet_flax.data.sources.similar_names import name_key

_ABSENT = re.compile(
    r"(?:[01] )?(?:normal|benign|healthy|negative|neg|controls?|background|(?:no|non|not|without)\b"
    r"|non(?:tumou?r|cancer|malignant|neoplastic|metastatic|invasive)\w*)(?: .*)?"
)


def order_classes(names: Collection[str], *, as_before: bool = False) -> tuple[str, ...]:
    """Returns class names in the order of their labels.

    Numbers are in their order and other names in that of the alphabet. Of two, one that names the
    absence of the other ('normal', 'benign', 'negative', 'no tumor', …) comes first, so that the
    finding is the positive class.

    Args:
      names: the classes.
      as_before: the alphabet alone, as in earlier versions.
    """
    ordered = sorted(names)
    if as_before:
        return tuple(ordered)
    if all(re.fullmatch(r"\d+(\.\d+)?", name) for name in ordered):
        return tuple(sorted(ordered, key=lambda name: (float(name), name)))
    if len(ordered) == 2:
        first, second = (bool(_ABSENT.fullmatch(name_key(name))) for name in ordered)
        if second and not first:
            ordered.reverse()
    return tuple(ordered)
