"""The parts of `make_pocket_teacher.py`: prompts, corpus, selection, teacher, and the judge of it."""
