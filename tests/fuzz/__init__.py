"""Fuzzers of all that is read; `python -m tests.fuzz --help`."""

import os

# Before JAX and Keras are imported.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
