"""ONNX: the network written out as the graph that the paper draws, with Keras's layer names.

Written here node by node with the `onnx` package and not converted: jax2onnx 0.17, the maintained
converter from JAX, knows neither `jax.lax.platform_dependent` nor Flax's own call of max pooling,
and holds Orbax back at 0.11. A DenseNet in inference is six kinds of nodes, and written plainly it
is what runtimes look for when they fuse.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.export.predict_fn import Outputs
from densenet_flax.inference import tta
from densenet_flax.inference.classifier import Classifier
from densenet_flax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from densenet_flax.models.units import param_key, unit_names
from densenet_flax.weights import WeightsInfo

OPSET = 17
_INSTALL = "install it: pip install onnx onnxruntime"


def require() -> None:
    """Refuses to begin without the `onnx` package.

    Raises:
      InputError: it is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX files need the package onnx; {_INSTALL}") from error


def serialize(classifier: Classifier, description: Mapping[str, Any]) -> bytes:
    """The classifier as an ONNX model, images uint8 [batch, height, width, 3] in.

    Args:
      classifier: what to write.
      description: of it; goes into the model's metadata.

    Returns:
      A serialised model of opset 17, checked by `onnx.checker`.

    Raises:
      InputError: the `onnx` package is not installed.
    """
    require()
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    x, count = "images", 1
    if classifier.tta:
        x, count = _views(graph, x, classifier.image_size), tta.num_views(classifier.image_size)
    x = _preprocess(graph, x, classifier.info.preprocessing)
    _judge(graph, _network(graph, x, classifier), classifier, count)

    height, width = classifier.image_size
    classes = len(classifier.class_names)
    value = helper.make_tensor_value_info
    outputs = [
        value("probability", TensorProto.FLOAT, ["batch", classes]),
        value("calibrated", TensorProto.FLOAT, ["batch", classes]),
        value("decision", TensorProto.INT32, ["batch"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            classifier.info.network,
            [value("images", TensorProto.UINT8, ["batch", height, width, 3])],
            outputs,
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,  # of opset 17's time, so that runtimes of 2022 and later read it
        producer_name="densenet_flax",
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in description.items()}
    helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def load(data: bytes) -> Callable[[np.ndarray], Outputs] | None:
    """The file's own function of images, in ONNX Runtime; None if that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


class _Graph:
    """Nodes and the weights they use; every method gives the name of a tensor."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        array = np.array(values, dtype, order="C")
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def norm_relu(self, x: str, name: str, p: Any, s: Any, epsilon: float, relu=True) -> str:
        values = {"gamma": p["scale"], "beta": p["bias"], "mean": s["mean"], "variance": s["var"]}
        inputs = [self.constant(f"{name}/{key}", value) for key, value in values.items()]
        x = self.add("BatchNormalization", x, *inputs, name=name, epsilon=epsilon)
        return self.add("Relu", x, name=f"{name}_relu") if relu else x

    def conv(self, x: str, name: str, kernel: Any, stride: int = 1) -> str:
        kernel = np.transpose(kernel, (3, 2, 0, 1))
        size = kernel.shape[-1]
        weights = self.constant(f"{name}/kernel", kernel)
        pads = [size // 2] * 4
        return self.add("Conv", x, weights, name=name, pads=pads, strides=[stride] * 2)


def _views(graph: _Graph, x: str, size: tuple[int, int]) -> str:
    """All symmetries of all images, view by view: [V · N, H, W, 3]."""
    for axis in (1, 2):
        limits = {"starts": -1, "ends": np.iinfo(np.int64).min, "axes": axis, "steps": -1}
        ends = [graph.constant(f"flip_{axis}/{k}", [v], np.int64) for k, v in limits.items()]
        flipped = graph.add("Slice", x, *ends, name=f"flip_{axis}")
        x = graph.add("Concat", x, flipped, name=f"with_flip_{axis}", axis=0)
    if size[0] == size[1]:
        turned = graph.add("Transpose", x, name="turn", perm=[0, 2, 1, 3])
        x = graph.add("Concat", x, turned, name="with_turn", axis=0)
    return x


def _preprocess(graph: _Graph, x: str, mode: str) -> str:
    """As `preprocess_input`; then channels first, as ONNX's convolutions want them."""
    x = graph.add("Cast", x, name="pixels", to=1)
    x = graph.add("Div", x, graph.constant("levels", 255.0), name="scaled")
    if mode == "torch":
        x = graph.add("Sub", x, graph.constant("imagenet/mean", IMAGENET_MEAN), name="centred")
        x = graph.add("Div", x, graph.constant("imagenet/std", IMAGENET_STD), name="standardised")
    return graph.add("Transpose", x, name="channels_first", perm=[0, 3, 1, 2])


def _network(graph: _Graph, x: str, classifier: Classifier) -> str:
    """From preprocessed images to logits; see `densenet_flax.models.densenet`."""
    info: WeightsInfo = classifier.info
    params, stats = classifier.variables["params"], classifier.variables["batch_stats"]
    square = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    for unit in unit_names(info.blocks):
        key = param_key(unit)
        p, s = params[key], stats[key]
        if unit == "stem":
            x = graph.conv(x, "conv1_conv", p["conv"]["kernel"], stride=2)
            x = graph.norm_relu(x, "conv1_bn", p["bn"], s["bn"], info.epsilon)
            x = graph.add("MaxPool", x, name="pool1", **square)
        elif "_block" in unit:
            y = graph.norm_relu(x, f"{unit}_0_bn", p["0_bn"], s["0_bn"], info.epsilon)
            y = graph.conv(y, f"{unit}_1_conv", p["1_conv"]["kernel"])
            y = graph.norm_relu(y, f"{unit}_1_bn", p["1_bn"], s["1_bn"], info.epsilon)
            y = graph.conv(y, f"{unit}_2_conv", p["2_conv"]["kernel"])
            x = graph.add("Concat", x, y, name=f"{unit}_concat", axis=1)
        elif unit == "norm":
            x = graph.norm_relu(x, "bn", p, s, info.epsilon, relu=info.final_relu)
        else:
            x = graph.norm_relu(x, f"{unit}_bn", p["bn"], s["bn"], info.epsilon)
            x = graph.conv(x, f"{unit}_conv", p["conv"]["kernel"])
            x = graph.add(
                "AveragePool", x, name=f"{unit}_pool", kernel_shape=[2, 2], strides=[2, 2]
            )
    x = graph.add("GlobalAveragePool", x, name="avg_pool")
    x = graph.add("Flatten", x, name="features")
    layers = [*[f"dense_{i}" for i in range(1, len(info.hidden) + 1)], "predictions"]
    for layer in layers:
        p = params["head"][layer]
        weights = [graph.constant(f"{layer}/{k}", p[k]) for k in ("kernel", "bias")]
        x = graph.add("Gemm", x, *weights, name=layer)
        if layer != "predictions":
            x = graph.add("Relu", x, name=f"{layer}_relu")
    return x


def _judge(graph: _Graph, logits: str, classifier: Classifier, count: int) -> None:
    """From logits to the outputs; see `densenet_flax.export.predict_fn`."""
    point, classes = classifier.point, len(classifier.class_names)
    if classifier.info.num_classes == 1:
        no = graph.add("Sub", logits, logits, name="no_score")
        logits = graph.add("Concat", no, logits, name="two_scores", axis=1)
    score = graph.add("LogSoftmax", logits, name="log_softmax", axis=1)
    if count > 1:
        shape = graph.constant("by_view", [count, -1, classes], np.int64)
        score = graph.add("Reshape", score, shape, name="score_of_views")
        score = graph.add("ReduceLogSumExp", score, name="sum_of_views", axes=[0], keepdims=0)
        score = graph.add(
            "Sub", score, graph.constant("log_views", np.log(count)), name="mean_of_views"
        )
    graph.add("Exp", score, name="probability")
    temperature = graph.constant("temperature", point.temperature)
    cooled = graph.add("Div", score, temperature, name="score_at_temperature")
    graph.add("Softmax", cooled, name="calibrated", axis=1)
    if classes == 2:
        second = graph.constant("second_class", 1, np.int64)
        positive = graph.add("Gather", "probability", second, name="positive", axis=1)
        threshold = graph.constant("threshold", point.threshold)
        chosen = graph.add("GreaterOrEqual", positive, threshold, name="is_positive")
    else:
        chosen = graph.add("ArgMax", score, name="likeliest", axis=1, keepdims=0)
    graph.add("Cast", chosen, name="decision", to=6)
