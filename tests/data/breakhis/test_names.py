"""BreakHis's file names."""

import numpy as np
import pytest

from densenet_flax.data.breakhis.names import ImageName, parse_name, patient_groups


def test_parsing_names():
    assert parse_name("SOB_B_TA-14-22549AB-400-012.png") == ImageName(
        "benign", "tubular_adenoma", 14, "22549AB", "22549", 400, 12
    )
    assert parse_name("SOB_M_DC-14-13412-40-001.png").slide_id == "13412"


@pytest.mark.parametrize(
    "name",
    [
        "SOB_B_A_14-22549AB-40-001.png",  # as the folders write it
        "SOB_B_DC-14-22549AB-40-001.png",  # no benign carcinoma
        "SOB_B_A-14-22549AB-50-001.png",
        "SOB_B_A-14-22549AB-40-001.png.bak",
        "xSOB_B_A-14-22549AB-40-001.png",
    ],
)
def test_other_names_are_rejected(name):
    assert parse_name(name) is None


def test_groups_run_from_coarse_to_fine():
    groups = patient_groups(
        ["DC", "LC", "A", "A"], ["13412"] * 2 + ["9A", "9B"], ["13412"] * 2 + ["9"] * 2
    )
    assert list(groups) == ["case70", "slide81", "id82"]
    np.testing.assert_array_equal(groups["case70"], ["13412", "13412", "9", "9"])
    np.testing.assert_array_equal(groups["slide81"], ["13412", "13412", "9A", "9B"])
    np.testing.assert_array_equal(groups["id82"], ["DC/13412", "LC/13412", "A/9A", "A/9B"])
