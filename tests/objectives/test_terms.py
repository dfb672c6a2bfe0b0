import torch

from asnn_goose.objectives.terms import matmul_dtype


def test_states_are_numbered_from_the_embeddings_output(seen_by_terms) -> None:
    seen = seen_by_terms()
    for number in range(4):
        assert seen.state(number) is seen.found.hidden_states[number]
    torch.testing.assert_close(seen.student.model.norm(seen.state(3)), seen.found.last_hidden_state)


def test_products_take_the_dtype_of_autocast() -> None:
    device = torch.device("cpu")
    assert matmul_dtype(device) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul_dtype(device) is torch.bfloat16
