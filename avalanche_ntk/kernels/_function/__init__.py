"""Private: the model as a function of chosen parameters, on a batch of samples."""
