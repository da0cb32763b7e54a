"""The cost of a training step on TPUs, without a TPU."""
