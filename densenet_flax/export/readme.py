"""The README of an exported folder."""

from collections.abc import Mapping
from typing import Any

_HOW = {
    "classifier.stablehlo": """## With JAX

StableHLO by `jax.export`, for CPU, GPU and TPU and any number of images. It needs
`pip install jax flatbuffers` and nothing else; JAX promises to read such files for six months.

```python
import jax, numpy as np

with open("classifier.stablehlo", "rb") as file:
    classifier = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
examples = np.load("examples.npz")
print(classifier(examples["images"])["probability"], examples["probability"])
```
""",
    "classifier.onnx": """## With ONNX Runtime, or whatever reads ONNX

Opset 17; `pip install onnxruntime`.

```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("classifier.onnx")
examples = np.load("examples.npz")
probability, calibrated, decision = session.run(None, {"images": examples["images"]})
print(probability, examples["probability"])
```
""",
    "classifier.weights.h5": """## With Keras

Weights alone: @ALONE@ are yours to apply.

```python
import keras, numpy as np

base = keras.applications.@NETWORK@(include_top=False, weights=None, input_shape=(@SIZE@, 3))
model = keras.Sequential([base, keras.layers.GlobalAveragePooling2D()@LAYERS@])
model.load_weights("classifier.weights.h5")
examples = np.load("examples.npz")
x = @PREPROCESS@
print(model.predict(x), examples["probability"])
```
""",
}


def readme(record: Mapping[str, Any]) -> str:
    """How to use the files that `record`, the content of `classifier.json`, tells of."""
    height, width = record["image_size"]
    classes, point = record["class_names"], record["operating_point"]
    parts = [
        f"# A classifier of {', '.join(classes[:-1])} and {classes[-1]}\n",
        f"{record['layout']}, exported by densenet_flax. `classifier.json` has the whole "
        "description and the files' sha256; `examples.npz` has images and what this classifier "
        "says of them.\n",
        f"In: `images`, uint8 [N, {height}, {width}, 3], RGB from 0 to 255, not preprocessed. "
        f"Resize as training did, with Pillow's `image.resize(({width}, {height}), "
        "Image.Resampling.BILINEAR)`; other filters give other numbers.\n",
    ]
    if record["stain"].get("method", "none") != "none":
        parts.append(
            f"**Not inside**: the stain normalisation of training ({record['stain']['method']}), "
            "which comes before resizing. Without it the probabilities are others than were "
            "evaluated; `densenet_flax.load_classifier` applies it.\n"
        )
    rule = f"{classes[1]} where its `probability` is at least {point['threshold']}"
    if point["threshold"] is None or len(classes) > 2:
        rule = "the likeliest class"
    parts.append(f"""Out:

- `probability` [N, {len(classes)}]: {", ".join(classes)}, in this order
- `calibrated`: the same at temperature {point["temperature"]:.6g}
- `decision` [N]: the class's number: {rule} ({point["rule"]}; chosen on \
{point["chosen_on"] or "no images"})
""")
    if record["test_time_augmentation"]:
        parts.append("Each image is judged by the mean over its symmetries, in the file itself.\n")
    parts += [_fill(how, record) for file, how in _HOW.items() if file in record["files"]]
    parts.append("For research; not a medical device.\n")
    return "\n".join(parts)


def _fill(how: str, record: Mapping[str, Any]) -> str:
    """Puts this network into the example for Keras."""
    head = record["head"]
    dense = [f'keras.layers.Dense({size}, "relu")' for size in head["hidden"]]
    dense.append(f'keras.layers.Dense({head["outputs"]}, "{head["activation"]}")')
    scaled = 'examples["images"] / 255.0'
    if record["preprocessing"] == "torch":
        scaled = (
            'keras.applications.densenet.preprocess_input(examples["images"].astype("float32"))'
        )
    mean = "the mean over symmetries, " if record["test_time_augmentation"] else ""
    values = {
        "ALONE": f"preprocessing, {mean}threshold and temperature",
        "NETWORK": record["network"].replace("densenet", "DenseNet"),
        "SIZE": ", ".join(map(str, record["image_size"])),
        "LAYERS": "".join(f", {layer}" for layer in dense),
        "PREPROCESS": scaled,
    }
    for key, value in values.items():
        how = how.replace(f"@{key}@", str(value))
    return how
