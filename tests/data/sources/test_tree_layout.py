"""What folders above tiles mean, on paths alone."""

import itertools

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.sources.tree_layout import read_layout, subset_of_word


def paths(*levels):
    """Every path with one folder of each level, and two files in it."""
    folders = itertools.product(*(level.split() for level in levels))
    return sorted(f"{'/'.join(parts)}/{i}.png" for parts in folders for i in range(2))


def layout_of(files, **stated):
    """The set of (subset, class) of the layout."""
    layout = read_layout(files, **stated)
    assert len(layout.labels) == len(files) and len(layout.subsets) in (0, len(files))
    return set(zip(layout.subsets or [""] * len(files), layout.labels, strict=True))


def pairs(subsets, labels):
    return set(itertools.product(subsets.split() or [""], labels.split()))


@pytest.mark.parametrize(
    ("files", "subsets", "labels"),
    [
        (paths("benign malignant"), "", "benign malignant"),
        (paths("data", "tiles", "0 1"), "", "0 1"),
        (paths("01_TUMOR 02_STROMA"), "", "01_TUMOR 02_STROMA"),
        (paths("train valid test", "a b"), "train validation test", "a b"),
        (paths("Training Testing", "a b"), "train test", "a b"),
        (paths("train_set test-images", "x", "a b"), "train test", "a b"),
        (paths("BRACS", "v1", "train val test", "0_N 1_PB"), "train validation test", "0_N 1_PB"),
        (paths("a b", "train test"), "train test", "a b"),
        (paths("fold_0 fold_1 fold_2", "a b"), "fold_0 fold_1 fold_2", "a b"),
        (paths("Fold1 Fold2", "a b"), "fold_1 fold_2", "a b"),
        (paths("train", "a b"), "", "a b"),  # a folder around everything
        (paths("a b", "40X 100X"), "", "a b"),
        ([f"{c}/p{n}/1.png" for c, n in (("a", 1), ("a", 2), ("b", 3))], "", "a b"),
        ([f"{c}/TCGA-{n}/1.png" for c, n in (("a", 1), ("a", 2), ("b", 3))], "", "a b"),
        # As BreakHis's names say, the top folders are the classes and not the subtypes.
        (
            [
                "benign/adenosis/SOB_B_A-14-1A-40-001.png",
                "benign/fibroadenoma/SOB_B_F-14-2-40-001.png",
                "malignant/lobular/SOB_M_LC-14-3-40-001.png",
                "malignant/ductal/SOB_M_DC-14-4-40-001.png",
            ],
            "",
            "benign malignant",
        ),
    ],
)
def test_one_reading(files, subsets, labels):
    assert layout_of(files) == pairs(subsets, labels)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (paths("40X 100X", "a b"), "named like magnifications"),
        (paths("train test", "40X 100X", "a b"), "named like magnifications"),
        (paths("10253 8863", "0 1"), "named like patients or slides"),
        (paths("p1 p2 p3"), "named like patients or slides"),
        (paths("SOB_B_A_14-22549AB SOB_M_DC_14-2523"), "named like patients or slides"),
        (paths("colon lung", "normal tumor"), "hold the same subfolders"),
        (paths("NCT CRC", "ADI BACK"), "hold the same subfolders .*data.test_path"),
        (
            ["colon/colon_aca/1.png", "colon/colon_n/1.png", "lung/lung_scc/1.png"],
            "below the top folders .* are others",
        ),
        (paths("train test unlabeled", "a b"), "named like subsets, but beside them is unlabeled"),
        (paths("fold_1 train", "a b"), "named like subsets, but beside them is"),
        (paths("fold_1 fold_2", "train test", "a b"), "levels 0 and 1 are both named like"),
        (["1.png", "a/2.png"], "1.png: is not in a class folder"),
        (["test/2.png", "train/a/1.png"], "is not in a class folder"),
    ],
)
def test_several_readings_are_an_error_until_one_is_stated(files, message):
    with pytest.raises(InputError, match=message) as caught:
        read_layout(files)
    assert files[0] in str(caught.value) and "\n" not in str(caught.value)


def test_a_level_or_a_pattern_states_the_class():
    organs = paths("colon lung", "aca n")
    assert layout_of(organs, level=0) == pairs("", "colon lung")
    for level in (1, -1):
        assert layout_of(organs, level=level) == pairs("", "aca n")
    assert layout_of(organs, pattern="^([^/]+/[^/]+)/") == {
        ("", f"{organ}/{kind}") for organ in ("colon", "lung") for kind in ("aca", "n")
    }
    # Subsets are still subsets, unless they are stated to be the class.
    assert layout_of(paths("train test", "40X 100X", "a b"), level=-1) == pairs("train test", "a b")
    assert layout_of(paths("train test", "a b"), level=0) == pairs("", "train test")
    with pytest.raises(InputError, match=r"1\.png: has 1 folder.* data\.label_level=1"):
        read_layout(["a/1.png"], 1)
    with pytest.raises(InputError, match=r"1\.png: data\.label_pattern='z' finds no class"):
        read_layout(["a/1.png"], pattern="z")


@pytest.mark.parametrize(
    ("word", "subset"),
    [
        ("Train", "train"),
        (" VALID ", "validation"),
        ("dev", "validation"),
        ("testing", "test"),
        ("2_test_set", "test"),
        ("fold-03", "fold_3"),
        ("tested", ""),
        ("contest", ""),
        ("normal", ""),
    ],
)
def test_words_for_subsets(word, subset):
    assert subset_of_word(word) == subset
