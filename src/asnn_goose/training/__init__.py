"""The distillation run: step, loop, checkpoints, guards."""
