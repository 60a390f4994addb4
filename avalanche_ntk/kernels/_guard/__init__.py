"""Private: checks of kernels, and protection of the model's state."""
