"""What comes with the package so that nothing must be fetched: a small pretrained teacher and text of its kind.

`scripts/make_pocket_teacher.py` made both; `model/README.md` beside this file is the teacher's card.
"""

import json
import lzma
from pathlib import Path
from typing import Literal

from asnn_goose.errors import DataError

FOLDER = Path(__file__).parent
POCKET_TEACHER = FOLDER / "model"
"""Directory of the teacher, as save_pretrained writes it."""


def pocket_documents(split: Literal["train", "held_out"]) -> list[str]:
    """The stories and explanations of a split: plain ASCII, no two alike.

    Raises:
        DataError: The file is missing or damaged, so the package must be installed again.
    """
    path = FOLDER / f"pocket_{split}.jsonl.xz"
    try:
        with lzma.open(path, "rt", encoding="ascii") as file:
            return [json.loads(line)["text"] for line in file]
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {path} ({error}): install asnn-goose again") from error
