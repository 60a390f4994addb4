"""Private: device-dependent settings and operations."""
