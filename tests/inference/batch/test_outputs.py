"""Which files a prediction job writes."""

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.inference.batch.outputs import OutputOptions


def test_two_outputs_in_one_file(tmp_path):
    table = tmp_path / "t.parquet"
    with pytest.raises(InputError, match=r"--embeddings=.*choose another"):
        OutputOptions(output=table, embeddings=tmp_path / "x" / ".." / "t.parquet").check()
