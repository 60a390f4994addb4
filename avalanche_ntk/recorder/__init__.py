"""Measuring while a model trains, whatever trains it: probes, schedule, trajectory, run folder.

Nothing here imports Avalanche.
"""
