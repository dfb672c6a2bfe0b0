import inspect

from asnn_goose import errors


def test_every_error_a_user_can_cause_is_a_goose_error() -> None:
    classes = [entry for _, entry in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) > 5
    assert all(issubclass(entry, errors.GooseError) for entry in classes)
