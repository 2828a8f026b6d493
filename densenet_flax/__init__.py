"""Fine-tune DenseNet201 on histopathology with JAX and Flax.

The public names are in `__init__.pyi` and are imported on first use: JAX takes seconds, and not
every program needs it.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
