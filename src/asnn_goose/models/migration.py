"""Moves what makes channels unequal out of activations and into the weights behind them, before spikes are made.

A token has one step for all its channels, so one loud channel makes it coarse for all. With a factor m_c for each
channel of a site, what makes the activations is divided by it and the columns that read them are multiplied by it:
W x = (W diag(m)) (x / m). The dense student computes what it did before, spikes are those of x / m, and nothing is left
to do at run time. With one exponent a site, a from 0 to 1,

    m_c = rms(x_c)^a / |W_c|^(1 - a), all of them scaled so that mean |x / m| is 1.

a and the threshold factor alpha are searched for together, for the least squared error of what the matrices make of
spikes: |W x - W diag(m) dense(spikes(x / m))|^2, summed over tokens and readers.

Source: the factors of SmoothQuant (Xiao et al. 2023, eq. 4) with norms in the place of maxima, found by a search for
the least error of outputs as in AWQ (Lin et al. 2024, sec. 3.2).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.models.block import GooseBlock
from asnn_goose.models.calibration import ENCODER_TOKENS, dense_encoders
from asnn_goose.models.folding import encoded_inputs, multiply_columns
from asnn_goose.models.goose_mixer import GooseMixer
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.spikes.calibrate import GRID
from asnn_goose.spikes.encoder import SpikeEncoder

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
"""The a of the search; a site may also stay as it is."""
ALPHAS = GRID[::2]
"""Threshold factors that are tried with each exponent and with none, 39 % apart."""
ERROR_TOKENS = 1024
"""Tokens, drawn from all, on which errors are measured: one product for each of a site's 5 * 17 candidates."""
SMALLEST_SHARE = 1e-3
"""The least that a channel's rms and norm count, as a share of their mean: silent channels have neither."""


class Migration(NamedTuple):
    """What a search found for a site: the factor of each channel, and the threshold factor that goes with them."""

    factors: Float[Tensor, " width"]
    alpha: float


@torch.no_grad()
def migrate_outliers(student: GooseForCausalLM, input_ids: Int[Tensor, "batch time"]) -> None:
    """Equalize channels before encoders where that brings the readers' outputs nearer to the dense student's, in place.

    A threshold factor that the encoder stores follows. Left as they are: encoders without a scale, whose unit spikes no
    step makes coarse; sites whose activations no weight scales channel by channel (k and v, `mixer_out` of a wkv mixer,
    `ffn_mid` without a gate); and sites that nothing weighs, as `gate_mid` while the gate's second factor is zero. A
    tied head whose columns are multiplied becomes a matrix of its own. Amplitudes count as 1, which they start at.
    """
    producers = channel_weights(student)
    readers = {encoder: layers for encoder, layers in encoded_inputs(student) if encoder.scale == "token"}
    found: dict[SpikeEncoder, Migration] = {}
    rows = max(1, ENCODER_TOKENS // input_ids.shape[1])
    tokens = torch.randperm(input_ids[:rows].numel(), generator=torch.Generator().manual_seed(0))[:ERROR_TOKENS]

    def search(encoder: SpikeEncoder, x: Tensor) -> None:
        """Search while the activations are here, so that none need to be kept; all readers are as yet unchanged."""
        if encoder in producers and encoder in readers:
            weights = [layer.weight for layer in readers[encoder]]
            found[encoder] = best_migration(encoder, x.flatten(end_dim=-2), weights, tokens.to(x.device))

    with dense_encoders(student, search):
        student.model(input_ids=input_ids[:rows])
    for encoder, (factors, alpha) in found.items():
        if encoder.stores_alpha:
            nn.init.constant_(cast(nn.Parameter, encoder.alpha), alpha)
        if bool((factors == 1).all()):
            continue
        for weight in producers[encoder]:
            weight.div_(factors.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)))
        multiply_columns(student, readers[encoder], factors)


def channel_weights(student: GooseForCausalLM) -> dict[SpikeEncoder, list[nn.Parameter]]:
    """By encoder, the weights that are factors of its channels, one a channel or one row a channel; where there are."""
    found: dict[SpikeEncoder, list[nn.Parameter]] = {}

    def add(encoders: nn.ModuleDict, **sources: nn.Module | None) -> None:
        """Note the weights of each source whose site is encoded."""
        for site, source in sources.items():
            if site in encoders and source is not None:
                found[cast(SpikeEncoder, encoders[site])] = list(source.parameters())

    for block in cast(Iterable[GooseBlock], student.model.layers):
        mixer, feed_forward = block.mixer, block.feed_forward
        if isinstance(mixer, GooseMixer):
            add(mixer.encoders, mixer_in=block.mixer_norm, gate_mid=mixer.gate_down)
            if "mixer_out" in mixer.encoders:
                norm = mixer.output_norm
                found[cast(SpikeEncoder, mixer.encoders["mixer_out"])] = [
                    mixer.head_norm if norm is None else norm.weight
                ]
        # Without a gate, what stands between `up` and `ffn_mid` is not linear.
        middle = feed_forward.output_norm or (None if feed_forward.gate is None else feed_forward.up)
        add(feed_forward.encoders, ffn_in=block.feed_forward_norm, ffn_mid=middle)
    add(student.model.encoders, head_in=student.model.norm)
    return found


def best_migration(
    encoder: SpikeEncoder,
    x: Float[Tensor, "tokens width"],
    weights: Sequence[Float[Tensor, "rows width"]],
    sample: Int[Tensor, " sample"],
) -> Migration:
    """The factors and the threshold factor of the least error among no change, and all pairs of the two grids.

    Args:
        encoder: What makes spikes of the activations; a threshold factor that it does not store stays.
        x: Its activations, which give each channel's rms.
        weights: The matrices that read them.
        sample: Indices of the tokens on which errors are measured.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # R^T R = W^T W for all readers together, so |W e| = |R e|, with no more rows than channels.
    reading = torch.linalg.qr(torch.cat([weight.to(x.dtype) for weight in weights]), mode="r").R
    norms = reading.square().sum(dim=0).sqrt()
    present = float(encoder.alpha)
    alphas = (present, *ALPHAS) if encoder.stores_alpha else (present,)
    candidates, errors = list[Migration](), list[Tensor]()
    # The first of equals: where nothing is gained, nothing changes.
    unchanged = torch.ones_like(norms)
    for factors in (unchanged, *(channel_factors(x, norms, exponent) for exponent in (None, *EXPONENTS))):
        equalized, columns = x[sample] / factors, reading * factors
        for alpha in alphas:
            step = encoder.step(equalized, alpha)
            missed = equalized - step * encoder.quantize(equalized / step)
            errors.append((missed @ columns.T).square().sum(dtype=torch.float64))
            candidates.append(Migration(factors, alpha))
    return candidates[int(torch.stack(errors).argmin())]


def channel_factors(
    x: Float[Tensor, "tokens width"], norms: Float[Tensor, " width"], exponent: float | None
) -> Float[Tensor, " width"]:
    """rms^exponent / norms^(1 - exponent), scaled so that mean |x / m| is 1; None scales all channels alike.

    Thresholds, which have a range, stay well within it then. Finite and positive for silent channels.
    """
    rms = x.square().mean(dim=0).sqrt()
    factors = torch.ones_like(rms)
    if exponent is not None:
        loudness, reading = (
            part.clamp_min(torch.finfo(part.dtype).tiny).maximum(SMALLEST_SHARE * part.mean()) for part in (rms, norms)
        )
        logs = exponent * loudness.log() - (1 - exponent) * reading.log()
        factors = (logs - logs.mean()).exp()
    size = (x / factors).abs().mean()
    return factors * torch.where(size > 0, size, 1.0)
