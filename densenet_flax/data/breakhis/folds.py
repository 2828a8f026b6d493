"""The official protocol: which of the 82 ids each of the five folds tests on.

The folds are overlapping hold-outs, not a cross-validation: an id may be tested in several folds
or in none. Each tests 28 ids, 9 benign and 19 malignant, and trains on the other 54; there is no
validation subset. Copied from the fold files that the authors publish with the images.
"""

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.names import SUBTYPES

FOLDS = (1, 2, 3, 4, 5)

# Per subtype: slide id, colon, the folds that test on it.
_TESTED = {
    "A": "22549AB:45 22549CD:345 22549G:12 29960CD:123",
    "F": "14134: 14134E:23 21998CD:15 21998EF:4 23060AB:234 23060CD:235 23222AB:1 25197: "
    "29960AB:4 9133:15",
    "PT": "21998AB:15 22704:34 29315EF:2",
    "TA": "13200: 15275:12 16184:15 16184CD:24 19854C:2345 21978AB:3 3411F:1345",
    "DC": "10926:25 11031: 11520:15 11951:15 12312:35 13412:35 13993:5 14015:4 14926: 14946:2 "
    "15572: 15696:4 15792:2 16188:234 16336: 16448:4 16601:234 16716:14 16875: 17614:1245 17901:5 "
    "17915:14 18650:134 20629:25 20636:15 2523:15 2773: 2980:1234 2985:23 3909:134 4364:123 "
    "4372:2 5287:34 5694:5 5695: 6241:13 8168:2 9461:3",
    "LC": "12204:45 13412:1 15570:12 15570C:34 16196:235",
    "MC": "10147: 12773:2 13413:135 13418DE:4 16456:245 18842: 18842D:1234 19979:3 19979C:15",
    "PC": "12465: 15687B:12 15704:15 190EF:345 19440:3 9146:24",
}


def _parse_table() -> dict[str, frozenset[int]]:
    """The folds that test on each id, which is written as in the group 'id82'."""
    folds = {}
    for token, entries in _TESTED.items():
        for entry in entries.split():
            slide, _, digits = entry.partition(":")
            folds[f"{SUBTYPES[token][0]}/{slide}"] = frozenset(map(int, digits))
    return folds


IDS = _parse_table()


def test_ids(fold: int) -> frozenset[str]:
    """Returns the 28 ids that a fold tests on; raises an `InputError` if there is no such fold."""
    if fold not in FOLDS:
        raise InputError(f"config.split.fold={fold}: BreakHis has the official folds 1 to 5")
    return frozenset(patient for patient, tested in IDS.items() if fold in tested)
