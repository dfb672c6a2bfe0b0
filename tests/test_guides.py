import re
from pathlib import Path

import pytest

from asnn_goose.report.recorded_table import markdown_table

ROOT = Path(__file__).parents[1]
RECORDED = (ROOT / "docs" / "guide" / "recorded.md").read_text(encoding="utf-8")


def test_the_guide_s_table_is_the_record_s():
    assert markdown_table() in RECORDED


def test_the_review_checklist_is_whole():
    assert re.findall(r"^\| (\d+) ", RECORDED, flags=re.MULTILINE) == [str(item) for item in range(1, 35)]


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"tests/[\w/]+\.py::\w+", RECORDED))))
def test_every_test_that_the_guide_names_exists(reference):
    path, name = reference.split("::")
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_every_file_that_the_guide_names_exists():
    named = re.findall(r"`((?:training|models|evaluation|data)/\w+\.py|config\w*\.py)`", RECORDED)
    assert len(named) >= 8
    assert all((ROOT / "src" / "asnn_goose" / name).is_file() for name in named)
