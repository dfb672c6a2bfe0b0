import numpy as np
import pytest

from pocket.trigram import KneserNeyTrigram

# Sums of at most 9 probabilities in float64.
TOLERANCE = 1e-12


def test_the_probabilities_of_all_tokens_sum_to_one():
    vocabulary = 9
    tokens = np.random.default_rng(0).zipf(1.5, 500) % 7
    trigram = KneserNeyTrigram(tokens, vocabulary)
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(vocabulary), np.arange(vocabulary)))
    sums = sum(trigram.probabilities(first, second, np.full_like(first, third)) for third in range(vocabulary))
    assert np.allclose(sums, 1.0, atol=TOLERANCE, rtol=0)


def test_a_small_text_has_the_probabilities_computed_by_hand():
    # Trigrams of 0 1 0 1 2: 010, 101, 012, once each. Bigrams after different tokens: 10 and 01 and 12 once each,
    # unigrams: 0, 1, 2 once each. All counts are one, so each discount is 1 / (1 + 0) = 1 and the own part is zero:
    # p1 = 0 + 1 * 3 / 3 * 1 / 4; p2 and p3 hand on what p1 says.
    trigram = KneserNeyTrigram(np.array([0, 1, 0, 1, 2]), vocabulary=4)
    assert np.allclose(trigram.probabilities(np.array([0]), np.array([1]), np.array([2])), 1 / 4)


def test_discounts_and_weights_are_those_of_the_formula():
    # Trigrams of 0 0 0 0 1 0 0: 000 twice, 001, 010, 100 once: D3 = 3 / (3 + 2 * 1) = 3/5.
    # N(. 0 0) = 2 (after 0 and 1), N(. 0 1) = 1, N(. 1 0) = 1: D2 = 2 / (2 + 2) = 1/2.
    # N(. 0) = 2, N(. 1) = 1: D1 = 1 / (1 + 2) = 1/3.
    trigram = KneserNeyTrigram(np.array([0, 0, 0, 0, 1, 0, 0]), vocabulary=3)
    p1 = (2 - 1 / 3) / 3 + (1 / 3) * 2 / 3 / 3
    p2 = (2 - 1 / 2) / 3 + (1 / 2) * 2 / 3 * p1
    p3 = (2 - 3 / 5) / 3 + (3 / 5) * 2 / 3 * p2
    zero, two = np.array([0]), np.array([2])
    assert trigram.probabilities(zero, zero, zero) == pytest.approx(p3, abs=TOLERANCE)
    # 2 0 was never seen, 0 was: the bigram alone decides. After 2 nothing was seen: the unigram does.
    assert trigram.probabilities(two, zero, zero) == pytest.approx(p2, abs=TOLERANCE)
    assert trigram.probabilities(zero, two, zero) == pytest.approx(p1, abs=TOLERANCE)


def test_it_beats_counting_single_tokens_on_text_that_has_an_order():
    generator = np.random.default_rng(1)
    # Each token is the one two before it, nine times out of ten.
    tokens = list(generator.integers(0, 20, 2))
    for _ in range(21_000):
        tokens.append(tokens[-2] if generator.random() < 0.9 else int(generator.integers(0, 20)))
    train, held_out = np.array(tokens[:20_000]), np.array(tokens[20_000:])
    shares = (np.bincount(train, minlength=20) + 1) / (len(train) + 20)
    unigram_nats = -np.log(shares[held_out[2:]]).mean()
    assert KneserNeyTrigram(train, 20).loss_nats(held_out).mean() < 0.5 * unigram_nats


@pytest.mark.parametrize("tokens", [[0, 1], [0, 1, 4], [0, 1, -1]])
def test_what_cannot_be_counted_is_refused(tokens):
    with pytest.raises(ValueError, match="three tokens or more"):
        KneserNeyTrigram(np.array(tokens), vocabulary=4)
