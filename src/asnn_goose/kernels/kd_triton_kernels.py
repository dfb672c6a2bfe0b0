"""The Triton kernel of the distillation loss: one program for each token, over both models' logits of that token.

It goes over the vocabulary twice: once for the normalizers, which need every logit, and once for the loss and its
gradient; divergences whose gradient needs a sum over the vocabulary first, and a temperature that learns, take one
round more. A token's logits come from memory once and from the cache after that. Letters: z and u are student's and
teacher's logits, p and q teacher's and student's probabilities at the temperature.
"""

from typing import no_type_check

from asnn_goose.errors import MachineError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MachineError(
        f"the Triton distillation loss needs triton, which cannot be imported ({error}): use a CUDA build of torch on "
        "Linux, or choose the torch backend"
    ) from error

# A logit of a word that does not exist: its probability is 0, and it stays a number in every product and difference.
OUTSIDE = tl.constexpr(-1e30)


@triton.jit
@no_type_check
def _parts(log_teacher, log_student, share, kind: tl.constexpr):
    """What each word adds to the divergence, and as q dD/dq and p dD/dp (`divergences.divergence_parts`)."""
    p, q = tl.exp(log_teacher), tl.exp(log_student)
    if kind == "forward_kl":
        gap = tl.where(p > 0, log_teacher - log_student, 0.0)
        value, student, teacher = p * gap, -p, p * (gap + 1)
    elif kind == "reverse_kl":
        gap = tl.where(q > 0, log_student - log_teacher, 0.0)
        value, student, teacher = q * gap, q * (gap + 1), -q
    elif kind == "total_variation":
        sign = tl.where(p > q, 0.5, tl.where(p < q, -0.5, p - q))
        value, student, teacher = sign * (p - q), -sign * q, sign * p
    else:
        mixture = share * p + (1 - share) * q
        # Where both are 0 neither weighs it.
        mixture = tl.where(mixture == 0, 1.0, mixture)
        log_mixture = tl.log(mixture)
        of_teacher = tl.where(p > 0, log_teacher - log_mixture, 0.0)
        if kind == "skew_kl":
            value, student = p * of_teacher, -(1 - share) * p * q / mixture
            teacher = p * (of_teacher + 1) - share * p * p / mixture
        else:
            of_student = tl.where(q > 0, log_student - log_mixture, 0.0)
            teacher, student = share * p * of_teacher, (1 - share) * q * of_student
            value = teacher + student
    return value, student, teacher


@triton.jit
@no_type_check
def _words(start, vocabulary, block: tl.constexpr):
    """The words of a block, and which of them there are."""
    words = start + tl.arange(0, block)
    return words, words < vocabulary


@triton.jit
@no_type_check
def _logs(places, inside, most, log_sum, inverse):
    """Logits less the largest, and log probabilities at the temperature."""
    centered = tl.load(places, mask=inside, other=OUTSIDE) - most
    return centered, centered * inverse - log_sum


@triton.jit
@no_type_check
def _normalizers(z_row, u_row, vocabulary, inverse, block: tl.constexpr):
    """The student's largest logit, its sums of exponentials at the temperature and at 1, the teacher's same but one."""
    z_most, u_most = tl.full((), OUTSIDE, tl.float32), tl.full((), OUTSIDE, tl.float32)
    z_sum, z_plain, u_sum = 0.0, 0.0, 0.0
    for start in range(0, vocabulary, block):
        words, inside = _words(start, vocabulary, block)
        z = tl.load(z_row + words, mask=inside, other=OUTSIDE)
        u = tl.load(u_row + words, mask=inside, other=OUTSIDE)
        before, u_before = z_most, u_most
        z_most, u_most = tl.maximum(before, tl.max(z, axis=0)), tl.maximum(u_before, tl.max(u, axis=0))
        z_sum = z_sum * tl.exp((before - z_most) * inverse) + tl.sum(tl.exp((z - z_most) * inverse), axis=0)
        z_plain = z_plain * tl.exp(before - z_most) + tl.sum(tl.exp(z - z_most), axis=0)
        u_sum = u_sum * tl.exp((u_before - u_most) * inverse) + tl.sum(tl.exp((u - u_most) * inverse), axis=0)
    return z_most, z_sum, z_plain, u_most, u_sum


@triton.jit
@no_type_check
def rows_kernel(
    student, teacher, gradient, labels, valid, scored, figures, temperature, vocabulary,
    student_stride, teacher_stride, gradient_stride, divergence_place, cross_entropy_place, share,
    kind: tl.constexpr, power: tl.constexpr, block: tl.constexpr, wants_gradient: tl.constexpr,
    wants_slope: tl.constexpr,
):  # fmt: skip
    """Of one token: divergence, cross entropy and the loss's slope by the temperature into `figures` (tokens 3)."""
    # 64 bits: a chunk of 8192 tokens of a vocabulary of 262,144 words has more entries than 32 bits count.
    row = tl.program_id(0).to(tl.int64)
    z_row, u_row = student + row * student_stride, teacher + row * teacher_stride
    heat = tl.load(temperature)
    divergence_weight, cross_entropy_weight = tl.load(divergence_place), tl.load(cross_entropy_place)
    inverse = 1.0 / heat
    counts = tl.load(valid + row).to(tl.float32)
    has_label = tl.load(scored + row).to(tl.float32)
    label = tl.load(labels + row)
    z_most, z_sum, z_plain, u_most, u_sum = _normalizers(z_row, u_row, vocabulary, inverse, block)
    log_z, log_u = tl.log(z_sum), tl.log(u_sum)
    cross_entropy = (tl.log(z_plain) + z_most - tl.load(z_row + label)) * has_label
    divergence, student_total, slope = 0.0, 0.0, 0.0
    ready: tl.constexpr = kind == "forward_kl" and wants_gradient and not wants_slope
    if ready:
        student_total = -1.0
    else:
        teacher_total, z_drift, z_mean, u_drift, u_mean = 0.0, 0.0, 0.0, 0.0, 0.0
        for start in range(0, vocabulary, block):
            words, inside = _words(start, vocabulary, block)
            z, log_q = _logs(z_row + words, inside, z_most, log_z, inverse)
            u, log_p = _logs(u_row + words, inside, u_most, log_u, inverse)
            value, of_student, of_teacher = _parts(log_p, log_q, share, kind)
            divergence += tl.sum(tl.where(inside, value, 0.0), axis=0)
            student_total += tl.sum(tl.where(inside, of_student, 0.0), axis=0)
            if wants_slope:
                teacher_total += tl.sum(tl.where(inside, of_teacher, 0.0), axis=0)
                z_drift += tl.sum(tl.where(inside, of_student * z, 0.0), axis=0)
                z_mean += tl.sum(tl.where(inside, tl.exp(log_q) * z, 0.0), axis=0)
                u_drift += tl.sum(tl.where(inside, of_teacher * u, 0.0), axis=0)
                u_mean += tl.sum(tl.where(inside, tl.exp(log_p) * u, 0.0), axis=0)
        if wants_slope:
            # T^n D(z / T, u / T) by T: the logits move the divergence by -<dD/dz, z> / T, and the same of u.
            moved = (z_drift - student_total * z_mean + u_drift - teacher_total * u_mean) * inverse
            slope = power * divergence - moved
            if power == 2:
                slope = slope * heat
            slope = slope * divergence_weight * counts
    if wants_gradient:
        weight = divergence_weight * counts
        if power == 2:
            weight = weight * heat
        plain_weight = cross_entropy_weight * has_label
        for start in range(0, vocabulary, block):
            words, inside = _words(start, vocabulary, block)
            z, log_q = _logs(z_row + words, inside, z_most, log_z, inverse)
            _, log_p = _logs(u_row + words, inside, u_most, log_u, inverse)
            value, of_student, _ = _parts(log_p, log_q, share, kind)
            if ready:
                divergence += tl.sum(tl.where(inside, value, 0.0), axis=0)
            slopes = (of_student - tl.exp(log_q) * student_total) * weight
            slopes += (tl.exp(z) / z_plain - tl.where(words == label, 1.0, 0.0)) * plain_weight
            tl.store(gradient + row * gradient_stride + words, slopes.to(gradient.dtype.element_ty), mask=inside)
    place = figures + row * 3
    # A product with 0 would keep what is no number; a token that does not count may be anything.
    tl.store(place, tl.where(counts > 0, divergence, 0.0))
    tl.store(place + 1, cross_entropy)
    tl.store(place + 2, slope)
