import dataclasses
import json

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.models.densenet import DenseNet201
from densenet_flax.weights import WeightsInfo

FULL = WeightsInfo.of(
    DenseNet201(num_classes=2, hidden=(256,), final_relu=False, epsilon=1e-5),
    preprocessing="scale",
    class_names=("benign", "malignant"),
    source="a.pth",
    sha256="ab",
    licence="CC0 1.0",
    extra={"microns_per_pixel": 0.5},
)


def test_it_survives_json():
    again = WeightsInfo.from_dict(json.loads(json.dumps(FULL.to_dict())))
    assert again == FULL
    assert isinstance(again.blocks, tuple)


def test_it_builds_the_model_it_describes():
    model = FULL.build_model(dropout=0.5)
    assert (tuple(model.blocks), model.num_classes, model.hidden) == ((6, 12, 48, 32), 2, (256,))
    assert (model.epsilon, model.final_relu, model.dropout) == (1e-5, False, 0.5)
    assert FULL.build_model(num_classes=0).num_classes == 0


def test_what_a_later_version_writes_is_kept():
    values = {**FULL.to_dict(), "magnification": 40}
    assert WeightsInfo.from_dict(values).extra == {"microns_per_pixel": 0.5, "magnification": 40}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preprocessing", "caffe"),
        ("num_classes", -1),
        ("num_classes", "2"),
        ("class_names", ("one",)),
        ("class_names", (1, 2)),
        ("epsilon", 0.0),
        ("epsilon", "small"),
        ("final_relu", 1),
        ("activation", "tanh"),
        ("network", "densenet121"),
        ("network", "resnet50"),
        ("blocks", ()),
        ("blocks", (6, 12, 48, 0)),
        ("hidden", (0,)),
        ("growth_rate", True),
        ("sha256", None),
    ],
)
def test_nonsense_is_named(name, value):
    with pytest.raises(InputError, match=name):
        dataclasses.replace(FULL, **{name: value})


def test_a_missing_or_strange_value_in_a_file_is_named():
    values = FULL.to_dict()
    del values["blocks"]
    with pytest.raises(InputError, match="blocks"):
        WeightsInfo.from_dict(values)
    with pytest.raises(InputError, match="extra"):
        WeightsInfo.from_dict({**FULL.to_dict(), "extra": [1]})
