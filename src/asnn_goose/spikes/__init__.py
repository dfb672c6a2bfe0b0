"""Ternary spikes: encoder, surrogate derivatives and statistics."""
