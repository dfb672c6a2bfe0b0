import pytest
import torch

from asnn_goose.evaluation.layer_targets import LayerTargets
from asnn_goose.evaluation.observation import Observation, SiteObservation
from asnn_goose.evaluation.similarity_evidence import SimilarityEvidence
from asnn_goose.information.cka import debiased_cka, normalized_tokens

ROWS, TIME, WIDTH = 6, 24, 8
LAYERS = LayerTargets({0: 0, 1: 1}, {0: 1, 1: 2})


@pytest.fixture
def seen():
    """Two blocks: one whose output is the teacher's with its channels in another order, one whose output is noise."""
    generator = torch.Generator().manual_seed(0)
    taught = [torch.randn(ROWS, TIME, WIDTH, generator=generator) for _ in range(3)]
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    noise = torch.randn(ROWS, TIME, WIDTH, generator=generator)
    k = taught[0].sign()
    return Observation(
        {(0, "k"): SiteObservation(k, k), (1, "ffn_in"): SiteObservation(k, k)},
        {0: taught[1], 1: noise},
        (3 * taught[1] @ torch.eye(WIDTH)[torch.randperm(WIDTH, generator=generator)], noise @ turn),
        tuple(taught),
    )


def rows(seen, part):
    return Observation(
        {place: SiteObservation(site.spikes[part], site.preactivations[part]) for place, site in seen.sites.items()},
        {block: state[part] for block, state in seen.states.items()},
        tuple(output[part] for output in seen.block_outputs),
        tuple(hidden[part] for hidden in seen.teacher_hidden),
    )


def summary(seen, step=ROWS, plain=False):
    evidence = SimilarityEvidence(LAYERS, seed=0, plain=plain)
    for start in range(0, ROWS, step):
        evidence.add(rows(seen, slice(start, start + step)), start)
    return evidence.summary()


def flat(inside):
    return normalized_tokens(inside[:, 1:]).flatten(0, 1)


def test_permuted_and_scaled_channels_are_the_same_and_noise_is_not(seen):
    found = {(entry.what, entry.layer): entry for entry in summary(seen).matched}
    assert found["block_output", 0].cka == pytest.approx(1, abs=1e-6)
    assert found["state", 0].cka == pytest.approx(1, abs=1e-6)
    assert abs(found["block_output", 1].cka) < 0.1


def test_figures_are_those_of_all_tokens_in_memory(seen):
    found = summary(seen)
    expected = debiased_cka(flat(seen.sites[0, "k"].spikes), flat(seen.teacher_hidden[0]))
    writes = next(entry for entry in found.matched if entry.what == "k")
    assert (writes.layer, writes.teacher_layer) == (0, -1)
    assert writes.cka == pytest.approx(expected, abs=1e-5)
    for block, row in enumerate(found.block_outputs):
        for state, cka in enumerate(row):
            dense = debiased_cka(flat(seen.block_outputs[block]), flat(seen.teacher_hidden[state]))
            assert cka == pytest.approx(dense, abs=1e-5)


def test_writes_stand_for_what_the_block_is_given_and_the_rest_for_what_it_makes(seen):
    compared = {(entry.what, entry.layer): entry.teacher_layer for entry in summary(seen).matched}
    assert compared == {
        ("block_output", 0): 0, ("block_output", 1): 1, ("k", 0): -1, ("state", 0): 0, ("state", 1): 1
    }  # fmt: skip


def test_controls_of_something_alike_are_not_alike(seen):
    found = next(entry for entry in summary(seen).matched if entry.what == "state" and entry.layer == 0)
    assert set(found.controls) == {"time_shift", "sign_shuffle", "rate_matched_noise", "teacher_shuffle"}
    assert all(abs(cka) < 0.2 for cka in found.controls.values())


def test_batches_change_nothing(seen):
    assert summary(seen, step=2) == summary(seen)


def test_the_plain_form_has_neither_controls_nor_matrix(seen):
    found, whole = summary(seen, plain=True), summary(seen)
    assert found.block_outputs == ()
    assert all(not entry.controls for entry in found.matched)
    assert [entry.cka for entry in found.matched] == [entry.cka for entry in whole.matched]
