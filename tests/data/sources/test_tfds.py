import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split_config import SplitConfig


def tile(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    buffer.seek(0)
    return pixels, buffer


class TinyTiles(tfds.core.GeneratorBasedBuilder):
    """A data set with its own names of features and splits, and with patients."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(16, 16, 3)),
            "kind": tfds.features.ClassLabel(names=["low", "high"]),
            "owner": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {
            name: self._generate_examples(i) for i, name in enumerate(("train", "valid", "test"))
        }

    def _generate_examples(self, split):
        for number in range(8):
            seed = split * 8 + number
            yield (
                seed,
                {"picture": tile(seed)[1], "kind": number % 2, "owner": f"p{split}{number // 2}"},
            )


class NoPictures(tfds.core.GeneratorBasedBuilder):
    """A data set without images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": iter([(0, {"label": 0})])}

    def _generate_examples(self):
        yield from ()


@pytest.fixture
def open_tfds(make_config, tmp_path):
    def open_named(name, **changes):
        config = make_config(name=name, path=str(tmp_path / "tfds"), **changes)
        return open_dataset(config, tmp_path / "cache")

    return open_named


def test_an_image_classification_data_set(open_tfds):
    dataset = open_tfds("tfds:tiny_tiles", image_size=(16, 16))
    assert len(dataset) == 24 and dataset.class_names == ("low", "high")
    assert sorted(dataset.files)[0] == "test/0000000"
    expected = {tile(seed)[0].tobytes() for seed in range(24)}
    assert {image.tobytes() for image in dataset.images} == expected
    for image, label in zip(dataset.images, dataset.labels, strict=True):
        seed = next(s for s in range(24) if tile(s)[0].tobytes() == image.tobytes())
        assert label == seed % 2
    split = make_split(dataset, SplitConfig(policy="given", group="patient"))
    assert set(dataset.files[split.test]) == {f"test/{i:07d}" for i in range(8)}
    assert set(dataset.files[split.validation]) == {f"valid/{i:07d}" for i in range(8)}
    assert not split.patient_disjoint  # nothing says whose they are


def test_patients_by_a_feature(open_tfds):
    dataset = open_tfds("tfds:tiny_tiles", patient_key="owner")
    assert dataset.patients_known and len(set(dataset.patients("patient"))) == 12
    config = SplitConfig(policy="given", group="patient")
    assert make_split(dataset, config).patient_disjoint
    with pytest.raises(InputError, match=r"patient_key='who': tiny_tiles has picture, kind, owner"):
        open_tfds("tfds:tiny_tiles", patient_key="who")


def test_data_sets_that_cannot_be_opened(open_tfds):
    with pytest.raises(InputError, match=r"data\.name='tfds:no_such_thing': TFDS cannot open") as e:
        open_tfds("tfds:no_such_thing")
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="expected one feature of type image, found none"):
        open_tfds("tfds:no_pictures")
