"""ONNX: the network written node by node, with Keras's layer names.

The functions below have the order and the names of `models.densenet` and `export.predict_fn`, so
that they can be read beside them. Each adds nodes and returns the name of their output tensor.
Every exported file is run and compared with the network before it is written.
"""

import json
from typing import Any, TypeAlias, cast

import jax
import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

from densenet_flax.common.trees import JsonDict, PyTree
from densenet_flax.evaluation.metrics.calibrators import Knots
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.export.predict_fn import Outputs, PredictFn, Steps
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.ensemble import Ensemble
from densenet_flax.inference.tta import num_views
from densenet_flax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from densenet_flax.models.units import param_key, unit_names

# The network is written once more beside `models.densenet` because no converter can: jax2onnx 0.17,
# the maintained one from JAX, fails on Flax's call of max pooling and holds Orbax back at 0.11. A
# DenseNet in inference is a few types of nodes, and in this form runtimes recognize and fuse them.

OPSET = 17
_IR_VERSION = 8  # of opset 17's time, so that runtimes since 2022 read it

Tensor: TypeAlias = str  # a tensor's name


def serialize(classifier: Classifier, description: JsonDict) -> bytes:
    """Returns the classifier as an ONNX model, with the description in its metadata."""
    graph = _Graph()
    _predict_fn(graph, "images", classifier)
    height, width = classifier.image_size
    classes, tensor_info = len(classifier.class_names), helper.make_tensor_value_info
    outputs = [
        tensor_info("probability", TensorProto.FLOAT, ["batch", classes]),
        tensor_info("calibrated", TensorProto.FLOAT, ["batch", classes]),
        tensor_info(
            "decision", TensorProto.INT32, ["batch", *([classes] * classifier.is_multilabel)]
        ),
    ]
    images = tensor_info("images", TensorProto.UINT8, ["batch", height, width, 3])
    name = classifier.info.network
    model = helper.make_model(
        helper.make_graph(graph.nodes, name, [images], outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="densenet_flax",
    )
    # Values of the metadata are strings; others are stored as JSON.
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in description.items()}
    helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def load(data: bytes) -> PredictFn | None:
    """Loads a serialized classifier into ONNX Runtime; None if that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(images: np.ndarray) -> Outputs:
        outputs = session.run(names, {"images": images})
        return cast(Outputs, dict(zip(names, outputs, strict=True)))

    return predict


class _Graph:
    """Nodes and their weights; each method adds a node and returns its name, also its output's."""

    def __init__(self) -> None:
        self.epsilon = 0.0  # of the network that is being written
        self.prefix = ""  # of its names
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: Tensor, name: str, **attributes: Any) -> Tensor:
        name = f"{self.prefix}{name}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: ArrayLike, dtype: DTypeLike = np.float32) -> Tensor:
        name = f"{self.prefix}{name}"
        self.weights.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    def conv(
        self, x: Tensor, name: str, params: PyTree, *, strides: int = 1, padding: int = 0
    ) -> Tensor:
        # Flax keeps kernels as [height, width, in, out], ONNX as [out, in, height, width].
        kernel = self.constant(f"{name}/kernel", np.transpose(params["kernel"], (3, 2, 0, 1)))
        return self.add("Conv", x, kernel, name=name, pads=[padding] * 4, strides=[strides] * 2)

    def batch_norm(self, x: Tensor, name: str, params: PyTree, stats: PyTree) -> Tensor:
        inputs = [
            self.constant(f"{name}/gamma", params["scale"]),
            self.constant(f"{name}/beta", params["bias"]),
            self.constant(f"{name}/mean", stats["mean"]),
            self.constant(f"{name}/variance", stats["var"]),
        ]
        return self.add("BatchNormalization", x, *inputs, name=name, epsilon=self.epsilon)

    def relu(self, x: Tensor) -> Tensor:
        return self.add("Relu", x, name=f"{x.removeprefix(self.prefix)}_relu")

    def pool(self, op: str, x: Tensor, name: str, *, size: int, **attributes: Any) -> Tensor:
        return self.add(op, x, name=name, kernel_shape=[size, size], strides=[2, 2], **attributes)

    def dense(self, x: Tensor, name: str, params: PyTree) -> Tensor:
        kernel = self.constant(f"{name}/kernel", params["kernel"])
        return self.add("Gemm", x, kernel, self.constant(f"{name}/bias", params["bias"]), name=name)


# The network, as in `models.densenet`: units, then `_densenet`.
def _stem(graph: _Graph, x: Tensor, params: PyTree, stats: PyTree) -> Tensor:
    x = graph.conv(x, "conv1_conv", params["conv"], strides=2, padding=3)
    x = graph.relu(graph.batch_norm(x, "conv1_bn", params["bn"], stats["bn"]))
    # ONNX pads with -inf and Keras with 0: the same after a ReLU.
    return graph.pool("MaxPool", x, "pool1", size=3, pads=[1] * 4)


def _dense_layer(graph: _Graph, x: Tensor, name: str, params: PyTree, stats: PyTree) -> Tensor:
    y = graph.relu(graph.batch_norm(x, f"{name}_0_bn", params["0_bn"], stats["0_bn"]))
    y = graph.conv(y, f"{name}_1_conv", params["1_conv"])
    y = graph.relu(graph.batch_norm(y, f"{name}_1_bn", params["1_bn"], stats["1_bn"]))
    y = graph.conv(y, f"{name}_2_conv", params["2_conv"], padding=1)
    return graph.add("Concat", x, y, name=f"{name}_concat", axis=1)


def _transition(graph: _Graph, x: Tensor, name: str, params: PyTree, stats: PyTree) -> Tensor:
    x = graph.relu(graph.batch_norm(x, f"{name}_bn", params["bn"], stats["bn"]))
    x = graph.conv(x, f"{name}_conv", params["conv"])
    return graph.pool("AveragePool", x, f"{name}_pool", size=2)


def _head(graph: _Graph, x: Tensor, hidden: int, params: PyTree) -> Tensor:
    x = graph.add("GlobalAveragePool", x, name="avg_pool")
    x = graph.add("Flatten", x, name="features")
    for i in range(1, hidden + 1):
        x = graph.relu(graph.dense(x, f"dense_{i}", params[f"dense_{i}"]))
    return graph.dense(x, "predictions", params["predictions"])


def _densenet(graph: _Graph, x: Tensor, classifier: Classifier) -> Tensor:
    """From preprocessed images, channels first, to logits."""
    info = classifier.info
    variables = jax.tree.map(np.asarray, classifier.variables)
    for unit in unit_names(info.blocks):
        params, stats = (variables[kind][param_key(unit)] for kind in ("params", "batch_stats"))
        if unit == "stem":
            x = _stem(graph, x, params, stats)
        elif unit == "norm":
            x = graph.batch_norm(x, "bn", params, stats)
            x = graph.relu(x) if info.final_relu else x
        elif unit.startswith("pool"):
            x = _transition(graph, x, unit, params, stats)
        else:
            x = _dense_layer(graph, x, unit, params, stats)
    return _head(graph, x, len(info.hidden), variables["params"]["head"])


# What comes before and after the network, as in `export.predict_fn`: parts, then `_predict_fn`.
def _symmetric_views(graph: _Graph, x: Tensor, size: tuple[int, int]) -> Tensor:
    """All symmetries of all images, [V · N, H, W, 3]: by view first, not by image as in `tta`."""
    for axis in (1, 2):
        # Backward to before the first row; an end of -1 would be the last one.
        backward = {"starts": -1, "ends": np.iinfo(np.int64).min, "axes": axis, "steps": -1}
        inputs = [
            graph.constant(f"flip_{axis}/{key}", [v], np.int64) for key, v in backward.items()
        ]
        flipped = graph.add("Slice", x, *inputs, name=f"flip_{axis}")
        x = graph.add("Concat", x, flipped, name=f"with_flip_{axis}", axis=0)
    if size[0] == size[1]:
        turned = graph.add("Transpose", x, name="turn", perm=[0, 2, 1, 3])
        x = graph.add("Concat", x, turned, name="with_turn", axis=0)
    return x


def _preprocess_input(graph: _Graph, x: Tensor, mode: str) -> Tensor:
    """Preprocessed images, channels first, as ONNX's convolutions take them."""
    x = graph.add("Cast", x, name="pixels", to=TensorProto.FLOAT)
    levels = graph.constant("levels", 127.5 if mode == "tf" else 255.0)
    x = graph.add("Div", x, levels, name="scaled")
    if mode == "tf":
        x = graph.add("Sub", x, graph.constant("center", 1.0), name="centred")
    if mode == "torch":
        x = graph.add("Sub", x, graph.constant("imagenet/mean", IMAGENET_MEAN), name="centred")
        x = graph.add("Div", x, graph.constant("imagenet/std", IMAGENET_STD), name="standardised")
    return graph.add("Transpose", x, name="channels_first", perm=[0, 3, 1, 2])


def _predict_fn(graph: _Graph, images: Tensor, classifier: Classifier) -> None:
    """From images to the outputs `probability`, `calibrated` and `decision`."""
    _decide(graph, _log_probability(graph, images, classifier), classifier)


def _log_probability(graph: _Graph, images: Tensor, classifier: Classifier) -> Tensor:
    if isinstance(classifier, Ensemble):
        return _combine(graph, images, classifier)
    info, classes = classifier.info, len(classifier.class_names)
    graph.epsilon = info.epsilon
    x = _symmetric_views(graph, images, classifier.image_size) if classifier.tta else images
    x = _preprocess_input(graph, x, info.preprocessing)
    logits = _densenet(graph, x, classifier)
    if classifier.is_multilabel:
        last = graph.constant("last_axis", [2], np.int64)
        logits = graph.add("Unsqueeze", logits, last, name="score_of_classes")
    if info.num_classes == 1 or classifier.is_multilabel:
        # x - x is a zero of the batch's size, which a constant could not have.
        zero = graph.add("Sub", logits, logits, name="no_score")
        logits = graph.add("Concat", zero, logits, name="two_scores", axis=-1)
    log_probability = graph.add("LogSoftmax", logits, name="log_softmax", axis=-1)
    if classifier.tta:
        views = num_views(classifier.image_size)
        # The views were concatenated, so the first axis of the batch is [V, N].
        sizes = [classes, 2] if classifier.is_multilabel else [classes]
        shape = graph.constant("by_view", [views, -1, *sizes], np.int64)
        by_view = graph.add("Reshape", log_probability, shape, name="score_of_views")
        total = graph.add("ReduceLogSumExp", by_view, name="sum_of_views", axes=[0], keepdims=0)
        log_views = graph.constant("log_views", np.log(views))
        log_probability = graph.add("Sub", total, log_views, name="mean_of_views")
    return log_probability


def _combine(graph: _Graph, images: Tensor, ensemble: Ensemble) -> Tensor:
    """The members, one after the other, and one score for each class of theirs."""
    is_mean = ensemble.combination.combine == "probabilities"
    axis = graph.constant("members", [0], np.int64)
    scores = []
    for i, member in enumerate(ensemble.members, start=1):
        graph.prefix = f"member{i}/"
        score = _log_probability(graph, images, member)
        weight = np.float64(ensemble.combination.weights[i - 1])
        if is_mean:
            with np.errstate(divide="ignore"):  # a weight of 0 is a logarithm of -inf
                shift = graph.constant("log_weight", np.log(weight))
            score = graph.add("Add", score, shift, name="weighted_score")
        else:
            score = graph.add("Mul", score, graph.constant("weight", weight), name="weighted_score")
        scores.append(graph.add("Unsqueeze", score, axis, name="score_of_member"))
        graph.prefix = ""
    stacked = graph.add("Concat", *scores, name="score_of_members", axis=0)
    if is_mean:
        return graph.add("ReduceLogSumExp", stacked, name="score", axes=[0], keepdims=0)
    total = graph.add("ReduceSum", stacked, axis, name="sum_of_members", keepdims=0)
    return graph.add("LogSoftmax", total, name="score", axis=-1)


def _decide(graph: _Graph, log_probability: Tensor, classifier: Classifier) -> None:
    """The outputs, from [N, K], or from [N, K, 2]: the absence and presence of each class."""
    point = classifier.operating_point
    second = graph.constant("second_class", 1, np.int64)
    if classifier.is_multilabel:
        likelihood = graph.add("Exp", log_probability, name="absent_or_present")
        graph.add("Gather", likelihood, second, name="probability", axis=2)
        likelihood = _at_temperature(graph, log_probability, point, "absent_or_present_calibrated")
        graph.add("Gather", likelihood, second, name="calibrated", axis=2)
        threshold = graph.constant("threshold", 0.5)
        decision = graph.add("GreaterOrEqual", "probability", threshold, name="is_present")
    else:
        graph.add("Exp", log_probability, name="probability")
        if point.knots:
            _isotonic(graph, "probability", point.knots)
        else:
            _at_temperature(graph, log_probability, point, "calibrated")
        if len(classifier.class_names) == 2:
            positive = graph.add("Gather", "probability", second, name="positive", axis=1)
            threshold = graph.constant("threshold", point.threshold)
            decision = graph.add("GreaterOrEqual", positive, threshold, name="is_positive")
        else:
            decision = graph.add("ArgMax", log_probability, name="likeliest", axis=1, keepdims=0)
    graph.add("Cast", decision, name="decision", to=TensorProto.INT32)


def _at_temperature(
    graph: _Graph, log_probability: Tensor, point: OperatingPoint, name: str
) -> Tensor:
    temperature = graph.constant("temperature", point.temperature)
    score = graph.add("Div", log_probability, temperature, name="score_at_temperature")
    if point.shift:
        shift = graph.constant("platt_shift", [0, point.shift])
        score = graph.add("Add", score, shift, name="shifted_score")
    return graph.add("Softmax", score, name=name, axis=-1)


def _isotonic(graph: _Graph, probability: Tensor, knots: Knots) -> Tensor:
    steps = Steps.of(knots)
    begin, end = (graph.constant(f"column_{i}", [i], np.int64) for i in (1, 2))
    x = graph.add("Slice", probability, begin, end, begin, name="positive_column")
    x = graph.add("Sub", x, graph.constant("step/start", steps.start), name="beyond_start")
    x = graph.add("Div", x, graph.constant("step/width", steps.width), name="share_of_step")
    limits = (graph.constant(f"limit_{i}", i) for i in (0, 1))
    x = graph.add("Clip", x, *limits, name="share_passed")
    x = graph.add("MatMul", x, graph.constant("step/rise", steps.rise[:, None]), name="rise")
    positive = graph.add("Add", x, graph.constant("first_step", steps.first), name="calibrated_1")
    negative = graph.add("Sub", graph.constant("one", 1), positive, name="calibrated_0")
    return graph.add("Concat", negative, positive, name="calibrated", axis=1)
