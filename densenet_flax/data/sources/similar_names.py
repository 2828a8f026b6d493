"""Names of classes and patients that differ only in spelling."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from densenet_flax.common.errors import InputError

POLICIES = ("error", "merge", "keep")


def name_key(name: str) -> str:
    """Returns what a name has in common with other spellings of it.

    Case, Unicode form, spaces, '_' and '-' between words, leading zeros and '.0' do not count:
    'P03' and 'p3', '1.0' and '1', 'ductal carcinoma' and 'Ductal_Carcinoma' have one key.
    """
    key = unicodedata.normalize("NFKC", name).casefold()
    key = re.sub(r"[\s_-]+", " ", key).strip()
    if re.fullmatch(r"\d+\.0*", key):
        key = key.partition(".")[0]
    return re.sub(r"(?<![\d.])0+(?=\d)", "", key)


def unify_names(names: Sequence[str], policy: str, what: str) -> Sequence[str]:
    """Applies a policy to names that differ only in spelling.

    Args:
      names: of all images.
      policy: 'error'; 'merge' to make them one, named by `name_key`; or 'keep' to let them differ.
      what: 'classes' or 'patients', for the message.

    Raises:
      InputError: the policy is 'error' and there are such names; the message lists them.
    """
    if policy == "keep":
        return names
    counts = Counter(names)
    spellings = defaultdict(list)
    for name in sorted(counts):
        spellings[name_key(name)].append(name)
    similar = [group for group in spellings.values() if len(group) > 1]
    if policy == "merge":
        if what == "classes":
            # Classes are few and shown everywhere: they keep their most frequent spelling.
            usual = {key: max(group, key=lambda n: counts[n]) for key, group in spellings.items()}
            return [usual[name_key(name)] for name in names]
        return [name_key(name) for name in names]
    if similar:
        shown = "; ".join(" and ".join(map(repr, group[:4])) for group in similar[:4])
        more = f"; and {len(similar) - 4} more" if len(similar) > 4 else ""
        raise InputError(
            f"{what} that differ only in spelling: {shown}{more}; correct them, or set "
            "data.similar_names='merge' (they are one) or 'keep' (they are not)"
        )
    return names
