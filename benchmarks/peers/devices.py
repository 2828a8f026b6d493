"""Reports the devices that JAX finds."""

import jax

from benchmarks.common import answer

if __name__ == "__main__":
    kinds = {"platform": jax.default_backend(), "count": jax.device_count()}
    answer({**kinds, "device": jax.devices()[0].device_kind}, ("jax",))
