"""Shared by all tests: CPU, and compiled functions kept between runs."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
