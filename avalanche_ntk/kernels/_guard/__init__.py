"""Private: what keeps a kernel right and the model untouched."""
