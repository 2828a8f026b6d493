"""Spellings of one name, and the order of classes."""

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.sources.class_order import order_classes
from densenet_flax.data.sources.similar_names import name_key, unify_names


@pytest.mark.parametrize(
    "spellings",
    [
        ("Benign", "benign", " benign ", "BENIGN"),
        ("ductal carcinoma", "Ductal_Carcinoma", "ductal-carcinoma", "ductal  carcinoma"),
        ("é", "e\u0301"),
        ("1", "1.0", "001", "1."),
        ("P3", "p03", "p3"),
    ],
)
def test_spellings_of_one_name(spellings):
    assert len({name_key(name) for name in spellings}) == 1
    with pytest.raises(InputError, match="patients that differ only in spelling") as caught:
        unify_names([*spellings, "another"], "error", "patients")
    assert all(repr(name) in str(caught.value) for name in spellings)
    merged = unify_names([*spellings, "another"], "merge", "patients")
    assert set(merged) == {name_key(spellings[0]), "another"}
    assert unify_names(spellings, "keep", "patients") == spellings


def test_different_names_stay_different():
    names = ["1", "10", "1.5", "p1", "p1a", "1p", "0", "TCGA-AA-3400", "TCGA-AA-3401", "a1", "1a"]
    assert len({name_key(name) for name in names}) == len(names)
    assert unify_names(names, "error", "classes") == names


def test_merged_classes_have_their_most_frequent_spelling():
    assert unify_names(["Tumor", "tumor", "tumor", "X"], "merge", "classes") == [
        *["tumor"] * 3,
        "X",
    ]


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        ("cancer normal", "normal cancer"),
        ("benign malignant", "benign malignant"),
        ("CRC non-tumor", "non-tumor CRC"),
        ("invasive noninvasive", "noninvasive invasive"),
        ("normal north", "normal north"),
        ("10 2 0", "0 2 10"),
        ("b a normal", "a b normal"),
        ("HP SSA", "HP SSA"),
    ],
)
def test_of_two_classes_the_finding_is_looked_for(names, ordered):
    assert order_classes(names.split()) == tuple(ordered.split())
    assert order_classes(names.split(), as_before=True) == tuple(sorted(names.split()))
