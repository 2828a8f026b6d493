"""Logits and probabilities of a data set's images."""

import dataclasses

import jax
import numpy as np
import pytest

from densenet_flax.common.sharding import make_mesh, replicate
from densenet_flax.inference.dataset_predictions import predict_logits, predict_probabilities
from densenet_flax.inference.results import to_probabilities
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.inference.tta import mean_over_views, symmetric_views

IDS = np.arange(11)


@pytest.fixture(scope="module")
def network(tiny, tiny_variables):
    segmented = SegmentedModel(tiny, make_mesh())
    return segmented, replicate(tiny_variables, segmented.mesh)


def test_rows_follow_the_ids_and_the_padding_is_dropped(network, dataset):
    ids, done = IDS[::-1], []
    logits = predict_logits(*network, dataset, ids, 16, progress=done.append)
    assert sum(done) == len(ids)
    segmented, variables = network
    assert np.allclose(segmented.run(variables, dataset.images[ids]), logits, atol=1e-5)
    probability = predict_probabilities(*network, dataset, ids, 16)
    assert np.array_equal(probability, to_probabilities(logits))


def test_tta_averages_the_views_and_ignores_how_the_tissue_lay(network, dataset):
    done = []
    mean = predict_probabilities(*network, dataset, IDS, 16, tta=True, progress=done.append)
    assert sum(done) == len(IDS)
    assert np.abs(mean - predict_probabilities(*network, dataset, IDS, 16)).max() > 1e-3
    # All views of all images at once, without the batches of the function.
    segmented, variables = network
    logits = np.asarray(segmented.run(variables, symmetric_views(dataset.images[IDS])))
    assert np.allclose(mean_over_views(to_probabilities(logits), 8), mean, atol=1e-6)
    turned = np.rot90(dataset.images, 1, axes=(1, 2))[:, :, ::-1]
    turned = dataclasses.replace(dataset, images=turned)
    for batch_size in (3, 16):  # fewer images than one has views, and two at a time
        other = predict_probabilities(*network, turned, IDS, batch_size, tta=True)
        assert np.allclose(other, mean, atol=1e-6)


def test_a_batch_is_dispatched_before_the_one_before_it_is_read(network, dataset, monkeypatch):
    """Else the devices wait for the host between two batches."""
    segmented, variables = network
    events, run, asarray = [], SegmentedModel.run, np.asarray

    def recorded_run(self, *args, **kwargs):
        events.append("dispatch")
        return run(self, *args, **kwargs)

    def recorded_asarray(x, *args, **kwargs):
        if isinstance(x, jax.Array) and x.shape == (16, 2):
            events.append("read")
        return asarray(x, *args, **kwargs)

    monkeypatch.setattr(SegmentedModel, "run", recorded_run)
    monkeypatch.setattr(np, "asarray", recorded_asarray)
    predict_logits(segmented, variables, dataset, np.arange(48), 16)
    assert events == ["dispatch", *["dispatch", "read"] * 2, "read"]
