"""The laboratory: streams with a controlled shift, models of a given width, lazy and rich settings."""
