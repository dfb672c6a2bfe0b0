import json
import lzma
import shutil

import pytest

from asnn_goose.data import pocket
from asnn_goose.data.pocket import POCKET_TEACHER, pocket_documents
from asnn_goose.errors import DataError

MOST_TEXT_BYTES, MOST_MODEL_BYTES = 2_500_000, 10_000_000


def test_the_documents_are_plain_and_no_two_are_alike():
    train, held_out = pocket_documents("train"), pocket_documents("held_out")
    assert len(train) > 10_000
    assert len(held_out) > 500
    assert len(set(train + held_out)) == len(train) + len(held_out)
    assert all(text.isascii() and text == text.strip() and len(text) >= 120 for text in train + held_out)


def test_no_held_out_document_begins_as_a_training_document_does():
    def beginnings(texts):
        return {text[:80] for text in texts}

    assert not beginnings(pocket_documents("train")) & beginnings(pocket_documents("held_out"))


def test_what_ships_stays_small():
    assert sum(path.stat().st_size for path in pocket.FOLDER.glob("*.xz")) <= MOST_TEXT_BYTES
    assert sum(path.stat().st_size for path in POCKET_TEACHER.iterdir()) <= MOST_MODEL_BYTES


def test_the_card_tells_license_figures_and_ten_samples():
    card = (POCKET_TEACHER / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Both conditions hold." in card
    assert "asnn-goose evaluate pocket --data pocket" in card
    samples = card.split("## Samples")[1].split("## License")[0]
    assert len([part for part in samples.split("\n\n") if part.startswith(">")]) == 10


@pytest.mark.parametrize("damage", ["cut", "missing", "not lines"])
def test_a_damaged_package_is_said_in_one_line(monkeypatch, tmp_path, damage):
    shutil.copy(pocket.FOLDER / "pocket_held_out.jsonl.xz", tmp_path)
    file = tmp_path / "pocket_held_out.jsonl.xz"
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:5000])
        case "missing":
            file.unlink()
        case "not lines":
            file.write_bytes(lzma.compress(json.dumps({"kind": "story"}).encode()))
    monkeypatch.setattr(pocket, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="install asnn-goose again") as caught:
        pocket_documents("held_out")
    assert "\n" not in str(caught.value)
