"""One module per study, each with a `STUDY`."""
