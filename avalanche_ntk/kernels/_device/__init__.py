"""Private: what depends on the device that a kernel is computed on."""
