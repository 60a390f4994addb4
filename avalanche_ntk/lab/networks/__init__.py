"""The networks of `avalanche_ntk.lab.models`, a module for each kind."""
