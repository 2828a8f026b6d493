"""Fixtures of all tests: JAX on a CPU, a tiny DenseNet, a small data set and a trained run.

What is not a fixture is in `tests/helpers`.
"""

import os
import tempfile
from pathlib import Path

# Before JAX and Keras are imported; child processes inherit it.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs are shared by all tests and processes and kept for the next run, also the
# hundreds of small ones of operations outside `jit`, which together take as long as the large ones.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "densenet_flax_tests_xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest

from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.init import init_variables
from tests.helpers.datasets import make_dataset
from tests.helpers.deprecations import warn_of_logged_deprecations
from tests.helpers.networks import TINY_BLOCKS, randomize
from tests.helpers.program import make_cache


def pytest_configure(config):
    """Programs that tests start, and their forks, have the tests' filters of warnings."""
    os.environ["PYTHONWARNINGS"] = ",".join(config.getini("filterwarnings"))
    warn_of_logged_deprecations()


@pytest.fixture(scope="session")
def tiny():
    """A DenseNet with every kind of unit and the recipe's head, small."""
    return DenseNet(blocks=TINY_BLOCKS, num_classes=2, hidden=(8,), dropout=0.5)


@pytest.fixture(scope="session")
def tiny_variables(tiny):
    """Random weights and random statistics, so that no BatchNorm is close to the identity."""
    return randomize(init_variables(tiny, seed=1), seed=2)


@pytest.fixture(scope="session")
def dataset():
    """Ten patients with five 32 × 32 images each."""
    return make_dataset(patients=10, images=5)


@pytest.fixture(scope="session")
def split(dataset):
    return make_split(dataset, SplitConfig(validation_fraction=0.25))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A `TinyRun`; do not change its work directory."""
    from tests.helpers.runs import train_tiny_run  # imports the whole package

    cache = make_cache(tmp_path_factory.mktemp("cache"))
    return train_tiny_run(cache, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A `HubServer` that `huggingface_hub` takes for the Hub, with an empty cache."""
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="pip install huggingface_hub"
    )
    from tests.helpers.hub_server import HubServer

    server = HubServer()
    # Read from the environment when the library is imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.close()


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, also where it was built for another PyTorch and lacks its operators."""
    torch = pytest.importorskip("torch", reason="timm and torchvision need PyTorch")
    keep = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        return pytest.importorskip("torchvision", reason="pip install torchvision")
    finally:
        torch.library.register_fake = keep
