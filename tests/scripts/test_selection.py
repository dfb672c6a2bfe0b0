import random

from pocket.selection import (
    HELD_OUT_PART,
    Document,
    compress,
    read_documents,
    read_shipped,
    select_documents,
    write_documents,
)

WORDS = [f"{first}{second}" for first in "bdfghklmnprst" for second in ("a", "e", "ing", "o", "ut", "ash", "irl", "ow")]
MOST_BYTES = 12_000


def make_documents(count=600):
    """Documents of random words, two to a group."""
    draw = random.Random(0)
    return [Document("story", f"group {place // 2}", " ".join(draw.choices(WORDS, k=40))) for place in range(count)]


DOCUMENTS = make_documents()


def test_the_same_seed_gives_the_same_bytes_whatever_the_order():
    shuffled = random.Random(1).sample(DOCUMENTS, len(DOCUMENTS))
    first, second = (select_documents(documents, 3, MOST_BYTES) for documents in (DOCUMENTS, shuffled))
    assert compress(first.train) == compress(second.train)
    assert compress(first.held_out) == compress(second.held_out)


def test_another_seed_gives_another_selection():
    assert select_documents(DOCUMENTS, 3, MOST_BYTES).train != select_documents(DOCUMENTS, 4, MOST_BYTES).train


def test_the_selection_fills_its_budget_and_no_more():
    selection = select_documents(DOCUMENTS, 0, MOST_BYTES)
    size = len(compress(selection.train)) + len(compress(selection.held_out))
    assert 0.95 * MOST_BYTES < size <= MOST_BYTES


def test_everything_ships_if_it_fits():
    selection = select_documents(DOCUMENTS, 0, 10**9)
    assert selection.train == selection.corpus


def test_held_out_documents_have_their_part_and_share_no_group_with_the_corpus():
    selection = select_documents(DOCUMENTS, 0, MOST_BYTES)
    held_out, train = selection.held_out, selection.train
    assert not {document.group for document in held_out} & {document.group for document in selection.corpus}
    assert abs(len(held_out) - HELD_OUT_PART * (len(train) + len(held_out))) <= 1


def test_documents_like_held_out_ones_are_left_out_of_the_corpus():
    held_out = select_documents(DOCUMENTS, 0, 10**9).held_out[0]
    words = held_out.text.split()
    copies = [Document("story", f"copy {place}", " ".join([*words[:20], *WORDS[:15]])) for place in range(50)]
    selection = select_documents([*DOCUMENTS, *copies], 0, 10**9)
    assert selection.near_duplicates > 40
    assert not any(document.group.startswith("copy") for document in selection.corpus)


def test_documents_survive_their_files(tmp_path):
    write_documents(tmp_path / "documents.jsonl", DOCUMENTS)
    assert read_documents(tmp_path / "documents.jsonl") == DOCUMENTS
    (tmp_path / "shipped.jsonl.xz").write_bytes(compress(DOCUMENTS))
    assert read_shipped(tmp_path / "shipped.jsonl.xz") == [document.text for document in DOCUMENTS]
