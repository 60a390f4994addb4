"""The networks of `avalanche_ntk.lab.models`, one module per kind."""
