"""Private: what the autograd graph of one forward pass says about parameters and samples."""
