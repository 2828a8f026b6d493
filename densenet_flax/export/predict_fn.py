"""What an exported file computes: from pixels to probabilities and a decision, in float32."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from densenet_flax.common.errors import InputError
from densenet_flax.inference import tta
from densenet_flax.inference.classifier import Classifier
from densenet_flax.models.preprocessing import preprocess_input

Outputs = Mapping[str, Any]  # 'probability' and 'calibrated' [N, K], 'decision' [N]


def check_activation(classifier: Classifier) -> None:
    """Refuses networks that call several classes at once.

    Raises:
      InputError: it is one of them.
    """
    info = classifier.info
    if info.activation == "sigmoid" and info.num_classes > 1:
        raise InputError(
            f"{info.source or 'the weights'}: {info.num_classes} independent sigmoid outputs; "
            "only networks whose classes exclude each other are exported"
        )


def predict_fn(classifier: Classifier, variables: Mapping[str, Any], images: jax.Array) -> Outputs:
    """The classifier as one traceable function.

    Logarithms of probabilities are what it reckons with, so that float32 loses nothing where the
    network is sure.

    Args:
      classifier: what to follow.
      variables: of its network.
      images: uint8 [N, height, width, 3], as `Classifier.prepare` gives them; N may be symbolic.
    """
    info, point = classifier.info, classifier.point
    x = tta.symmetric_views(images) if classifier.tta else images
    logits: Any = classifier.model.apply(dict(variables), preprocess_input(x, info.preprocessing))
    if info.num_classes == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    score = jax.nn.log_softmax(logits, axis=-1)
    if classifier.tta:
        count = tta.num_views(images.shape[1:3])
        of_views = score.reshape(-1, count, score.shape[-1])
        score = jax.nn.logsumexp(of_views, axis=1) - jnp.log(jnp.float32(count))
    probability = jnp.exp(score)
    if score.shape[-1] == 2:
        decision = probability[:, 1] >= jnp.float32(point.threshold)
    else:
        decision = score.argmax(axis=-1)
    return {
        "probability": probability,
        "calibrated": jax.nn.softmax(score / jnp.float32(point.temperature), axis=-1),
        "decision": decision.astype(jnp.int32),
    }
