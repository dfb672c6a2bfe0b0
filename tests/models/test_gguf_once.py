import gguf
import pytest

from asnn_goose.models.gguf_once import one_gguf_reading


def test_a_file_is_parsed_once_and_a_map_built_once_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or object())
    with one_gguf_reading():
        assert gguf.GGUFReader("a") is gguf.GGUFReader("a")
        gguf.GGUFReader("b")
        maps = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) for _ in range(2)]
    assert parsed == ["a", "b"]
    assert maps[0] is maps[1]


def test_the_library_is_as_before_after_the_block_even_after_an_error() -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(RuntimeError), one_gguf_reading():
        raise RuntimeError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
