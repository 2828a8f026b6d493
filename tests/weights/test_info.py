"""`WeightsInfo`: it survives JSON, and no value of it is taken on trust."""

import dataclasses
import json

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.models.densenet import DenseNet201
from densenet_flax.weights import InferenceSettings, StoredOperatingPoint, WeightsInfo

SETTINGS = InferenceSettings(
    image_size=(224, 336),
    stain={"method": "channel", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
    dtype="bfloat16",
    patient_group="slide81",
    patient_pattern=r"/(p\d+)_",
    operating_point=StoredOperatingPoint(
        0.25, 1.5, "youden", "9 images", notes=("a note",), tta=True, step=7, extra={"later": [1]}
    ),
)
FULL = WeightsInfo.of(
    DenseNet201(num_classes=2, hidden=(256,), final_relu=False, epsilon=1e-5),
    preprocessing="scale",
    class_names=("benign", "malignant"),
    source="a.pth",
    sha256="ab",
    license="CC0 1.0",
    inference=SETTINGS,
    extra={"microns_per_pixel": 0.5},
)


def through_json(info):
    return WeightsInfo.from_dict(json.loads(json.dumps(info.to_dict())))


@pytest.mark.parametrize("info", [FULL, WeightsInfo.of(DenseNet201())], ids=["full", "bare"])
def test_json_round_trip(info):
    again = through_json(info)
    assert again == info
    assert isinstance(again.blocks, tuple)
    assert again.to_dict() == info.to_dict()


def test_json_has_the_form_of_earlier_versions():
    """Settings lie in `extra`, and the license is spelled as it always was."""
    values = FULL.to_dict()
    assert values["licence"] == "CC0 1.0"
    assert values["extra"] == {
        "microns_per_pixel": 0.5,
        "image_size": [224, 336],
        "stain": {"method": "channel", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
        "dtype": "bfloat16",
        "patient_group": "slide81",
        "patient_pattern": r"/(p\d+)_",
        "operating_point": {
            **{"threshold": 0.25, "temperature": 1.5, "rule": "youden", "chosen_on": "9 images"},
            **{"notes": ["a note"], "tta": True, "step": 7, "later": [1]},
        },
    }
    values["license"] = values.pop("licence")
    assert WeightsInfo.from_dict(values) == FULL
    assert WeightsInfo.of(DenseNet201()).to_dict()["extra"] == {}


def test_empty_settings_of_earlier_versions_are_the_defaults():
    written = {"stain": {}, "dtype": "float32", "patient_pattern": "", "operating_point": None}
    values = {**FULL.to_dict(), "extra": written}
    assert WeightsInfo.from_dict(values).inference == InferenceSettings()


def test_build_model():
    model = FULL.build_model(dropout=0.5)
    assert (tuple(model.blocks), model.num_classes, model.hidden) == ((6, 12, 48, 32), 2, (256,))
    assert (model.epsilon, model.final_relu, model.dropout) == (1e-5, False, 0.5)
    assert FULL.build_model(num_classes=0).num_classes == 0


def test_keys_of_a_later_version_are_kept():
    values = FULL.to_dict()
    values["magnification"] = 40
    values["extra"]["operating_point"]["costs"] = {"miss": 10}
    info = WeightsInfo.from_dict(values)
    assert info.extra == {"microns_per_pixel": 0.5, "magnification": 40}
    assert info.inference.operating_point.extra == {"later": [1], "costs": {"miss": 10}}
    written = through_json(info).to_dict()["extra"]
    assert written["magnification"] == 40
    assert written["operating_point"]["costs"] == {"miss": 10}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preprocessing", "caffe"),
        ("num_classes", -1),
        ("num_classes", "2"),
        ("class_names", ("one",)),
        ("class_names", (1, 2)),
        ("class_names", ("a", "a")),
        ("class_names", ("a", "")),
        ("license", "x" * 100_001),
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
        ("license", 3),
        ("inference", {}),
        ("extra", {"image_size": [32, 32]}),
    ],
)
def test_a_bad_attribute_is_rejected_by_name(name, value):
    with pytest.raises(InputError, match=name):
        dataclasses.replace(FULL, **{name: value})


NAN, INFINITY = float("nan"), float("inf")
BAD_SETTINGS = [
    *[("image_size", v) for v in ([1_000_000] * 2, [-224, 224], [0, 0], ["224", "224"], [224])],
    *[("image_size", v) for v in (224, [224.0, 224.0], [True, True], [224, 224, 3], "big", {})],
    *[("stain", v) for v in ([], "macenko", 1)],
    *[("stain.mean", v) for v in ("1", [NAN, 1, 1], [["1"]], {}, [INFINITY] * 3, 1e300, True)],
    ("stain.mean", [[[1]]]),
    *[("stain.method", v) for v in (1, ["channel"], None)],
    *[("stain.reference", v) for v in ("/dev/zero", 1, [1])],
    *[("dtype", v) for v in ("float16", "int8", "object", 32, ["float32"], "")],
    *[("patient_group", v) for v in (1, ["case70"], {})],
    *[("patient_pattern", v) for v in ("(", "(" * 900, "a{99999999999}", "x" * 10_000, 1, ["a"])],
    *[("operating_point", v) for v in ([1], "fixed", 0.5, [])],
    *[("operating_point.threshold", v) for v in (NAN, -0.1, 1.1, INFINITY, "0.5", [], True)],
    *[("operating_point.temperature", v) for v in (0, -1, NAN, INFINITY, 1e-300, None, "1", True)],
    *[("operating_point.rule", v) for v in (None, 1, [])],
    *[("operating_point.chosen_on", v) for v in (None, 1, {})],
    *[("operating_point.notes", v) for v in ("note", [1], None)],
    *[("operating_point.tta", v) for v in (1, "no", None)],
    *[("operating_point.method", v) for v in ("beta", 1, None)],
    *[("operating_point.shift", v) for v in (NAN, "1", 1e9)],
    *[
        ("operating_point.knots", v)
        for v in ([1], [[0, 2.0]], [[0.5, 0.1], [0.4, 0.2]], "x", [[0, NAN]])
    ],
    *[("operating_point.step", v) for v in (-1, 1.5, "7", [7], True)],
]


@pytest.mark.parametrize(("key", "value"), BAD_SETTINGS, ids=lambda value: f"{value!s:.30}")
def test_a_bad_setting_is_rejected_by_key(key, value):
    values = FULL.to_dict()
    first, _, second = key.partition(".")
    if second:
        values["extra"][first][second] = value
    else:
        values["extra"][first] = value
    with pytest.raises(InputError) as error:
        WeightsInfo.from_dict(values)
    message = str(error.value)
    name = first if first == "stain" else key  # which checks its own keys when it is applied
    assert message.startswith(f"extra.{name}=") and ": expected " in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize("name", ["threshold", "temperature", "rule", "chosen_on"])
def test_an_incomplete_operating_point_is_rejected(name):
    values = FULL.to_dict()
    del values["extra"]["operating_point"][name]
    with pytest.raises(InputError, match=f"extra.operating_point.{name}: missing"):
        WeightsInfo.from_dict(values)


def test_a_missing_or_malformed_value_is_named():
    values = FULL.to_dict()
    del values["blocks"]
    with pytest.raises(InputError, match="blocks"):
        WeightsInfo.from_dict(values)
    with pytest.raises(InputError, match="extra"):
        WeightsInfo.from_dict({**FULL.to_dict(), "extra": [1]})
    with pytest.raises(InputError, match="JSON object"):
        WeightsInfo.from_dict([FULL.to_dict()])
