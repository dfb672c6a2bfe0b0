"""Measuring a model: perplexity, spikes, and what they cost."""
