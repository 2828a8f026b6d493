"""What the user of an exported folder has to know, as JSON and as its README."""

from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined

from densenet_flax.common.types import JsonDict
from densenet_flax.inference.classifier import Classifier


def describe(classifier: Classifier) -> JsonDict:
    """The classes, the network, how to prepare its input and how its outputs were chosen."""
    info = classifier.info
    return {
        "class_names": list(classifier.class_names),
        "image_size": list(classifier.image_size),
        "network": info.network,
        "layout": info.layout.describe(),
        "head": {
            "hidden": list(info.hidden),
            "outputs": info.num_classes,
            "activation": info.activation,
        },
        "preprocessing": info.preprocessing,
        "test_time_augmentation": classifier.tta,
        "operating_point": classifier.operating_point.to_dict(),
        "stain": dict(info.inference.stain),
        "weights": {"source": info.source, "sha256": info.sha256, "licence": info.license},
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
    }


def render_readme(description: JsonDict) -> str:
    """Renders the README of a folder from what `describe` returned and the `files` by name."""
    environment = Environment(
        loader=PackageLoader("densenet_flax.export"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    height, width = description["image_size"]
    template = environment.get_template("README.md")
    return template.render(description, height=height, width=width)
