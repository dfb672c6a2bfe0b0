"""The teacher, the student, and everything a model is made of."""
