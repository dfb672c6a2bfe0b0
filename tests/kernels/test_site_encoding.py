import math

import torch

from asnn_goose.kernels.site_encoding import UNLIMITED, SiteEncoding, encoding_choices, own_factors

TERNARY = SiteEncoding(levels=1, alpha=0.9, limit=math.inf, gradient_scale=0.5, scaled=True)


def test_an_encoding_is_five_finite_numbers_and_none_has_no_levels():
    assert encoding_choices(TERNARY) == [1.0, 0.9, UNLIMITED, 0.5, 1.0]
    assert encoding_choices(None) == [0.0] * 5


def test_factors_on_the_device_stand_side_by_side_and_take_no_gradient():
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    own = SiteEncoding(1, 1.0, 1.5, 1.0, True, factor)
    assert own_factors((TERNARY, None)) is None
    assert torch.equal(own_factors((TERNARY, own)), torch.tensor([1.0, 0.7]))
    assert not own_factors((own, None)).requires_grad
