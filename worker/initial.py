"""Initial weights, drawn from the job's seed."""

from math import sqrt

import numpy as np

from worker.arrays import Floats
from worker.model import Layout, ModelSpec
from worker.streams import Purpose, stream

SMALL = 0.05
HE_ACTIVATIONS = ("relu", "leaky_relu", "gelu")


def initial_weights(spec: ModelSpec, layout: Layout, seed: int) -> Floats:
    """Return the initial parameters (P,), biases 0, where `spec.initial_weights` names a rule and not a file.

    small: uniform in ±0.05. xavier: uniform in ±sqrt(6 / (inputs + outputs)) (Glorot and Bengio, 2010, eq. 16).
    he: normal with variance 2 / inputs (He et al., 2015, eq. 10). Each layer is drawn from (seed, layer) in float64.
    """
    rule = spec.initial_weights or ("he" if spec.activation in HE_ACTIVATIONS else "xavier")
    flat_P = np.zeros(layout.size, spec.dtype)
    for number, slot in enumerate(slot for slot in layout.slots if slot.is_weight):
        outputs, inputs = slot.shape
        draws = stream(seed, Purpose.INITIAL_WEIGHTS, number)
        match rule:
            case "small":
                weight_OI = draws.uniform(-SMALL, SMALL, slot.shape)
            case "xavier":
                bound = sqrt(6.0 / (inputs + outputs))
                weight_OI = draws.uniform(-bound, bound, slot.shape)
            case "he":
                weight_OI = draws.normal(0.0, sqrt(2.0 / inputs), slot.shape)
            case _:
                continue
        flat_P[slot.offset : slot.offset + slot.size] = weight_OI.ravel()
    return flat_P
