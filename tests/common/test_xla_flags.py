"""The flags that make a GPU's results repeatable."""

import os

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from densenet_flax import InputError
from densenet_flax.common.xla_flags import (
    check_deterministic_kernels,
    request_deterministic_kernels,
)
from densenet_flax.experiments.session import set_up_jax

FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, FLAG),
        ("--xla_dump_to=x", f"--xla_dump_to=x {FLAG}"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_flags_of_the_user_stay(before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before or "")
    request_deterministic_kernels()
    request_deterministic_kernels()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_program_sets_the_flag_that_a_configuration_asks_for(deterministic, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    set_up_jax(ConfigDict({"deterministic": deterministic}))
    assert os.environ["XLA_FLAGS"] == (FLAG if deterministic else "")


def test_a_gpu_without_the_flag_is_refused(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    check_deterministic_kernels()  # a CPU computes the same bits anyway
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="deterministic=True: XLA_FLAGS lacks"):
        check_deterministic_kernels()
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x {FLAG}")
    check_deterministic_kernels()


def test_xla_still_knows_the_flag():
    # An unknown name in XLA_FLAGS would end the process when JAX starts.
    lowered = jax.jit(jnp.sin).lower(1.0)
    lowered.compile(compiler_options={"xla_gpu_deterministic_ops": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_deterministic_opps": True})
