"""Whether k and v have stayed each other's twins, as they do where they start equal and enter only as a product.

Of k_t * v_t with amplitudes a_k and a_v only a_k * a_v acts: equal starts have equal gradients, and stay equal to the
last bit.
"""

import math
from typing import cast

from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.spikes.encoder import SpikeEncoder


def equal_amplitudes(student: GooseForCausalLM) -> float:
    """The largest |a_k - a_v| of all layers and channels: 0 where k and v have learned no amplitudes of their own.

    NaN where no layer has both.
    """
    largest = math.nan
    for mixer in student.model.mixers():
        if "k" not in mixer.encoders or "v" not in mixer.encoders:
            continue
        key, value = (cast(SpikeEncoder, mixer.encoders[site]).bounded_amplitude() for site in ("k", "v"))
        if key is not None and value is not None:
            found = float((key.detach() - value.detach()).abs().max())
            largest = found if math.isnan(largest) else max(largest, found)
    return largest
