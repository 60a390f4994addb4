"""One module a study, each with its `STUDY`."""
