import pytest

from tests.training.runs import Run


@pytest.fixture(scope="session")
def straight(tmp_path_factory, tiny, tiny_variables, dataset, split):
    """The recipe from start to end without a stop, and its `result`."""
    run = Run(tmp_path_factory.mktemp("straight"), tiny, dataset, split)
    run.result = run(tiny_variables)
    return run
