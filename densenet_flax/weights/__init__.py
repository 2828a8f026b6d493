"""Weights in and out: every DenseNet file in the wild becomes our variables, and goes back.

variables = load_weights('imagenet', model)      # or any supported file
variables, info = read_weights('model.keras')    # the file says which network it is
model = info.build_model()

On the command line: `python -m densenet_flax.weights convert|export|inspect|download`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
