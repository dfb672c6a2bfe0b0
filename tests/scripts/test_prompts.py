from collections import Counter

from pocket.prompts import STORY_PART, all_explanations, chat_text, compose_prompts

COUNT = 6_000


def test_there_are_thousands_of_different_prompts():
    prompts = compose_prompts(COUNT, seed=0)
    assert len(set(prompts)) == COUNT
    assert len({prompt.opening for prompt in prompts}) > 3_000


def test_stories_have_their_part():
    kinds = Counter(prompt.kind for prompt in compose_prompts(COUNT, seed=0))
    assert kinds == {"story": round(STORY_PART * COUNT), "explanation": COUNT - round(STORY_PART * COUNT)}


def test_stories_fill_up_what_explanations_cannot():
    count = 6 * len(all_explanations())
    assert len(compose_prompts(count, seed=0)) == count


def test_the_seed_decides():
    assert compose_prompts(50, seed=1) == compose_prompts(50, seed=1)
    assert compose_prompts(50, seed=1) != compose_prompts(50, seed=2)


def test_every_place_for_a_word_is_filled():
    for prompt in compose_prompts(COUNT, seed=0):
        assert "{" not in prompt.request + prompt.opening
        assert prompt.opening[0].isupper() or prompt.opening.startswith('"')
        assert prompt.opening == prompt.opening.strip()


def test_a_chat_ends_within_the_answer():
    prompt = compose_prompts(1, seed=0)[0]
    text = chat_text(prompt)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith(f"<|im_start|>user\n{prompt.request}<|im_end|>\n<|im_start|>assistant\n{prompt.opening}")
