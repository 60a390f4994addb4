"""Private: from backpropagated signals to kernel entries."""
