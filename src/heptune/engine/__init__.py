"""Training: forest batches, the loss, the step, the loop and its checkpoints."""
