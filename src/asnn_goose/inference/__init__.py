"""Using a trained student."""
