"""The laboratory: streams with controlled shifts, models of a given width, lazy and rich regimes."""
