"""Avalanche benchmarks with controlled shifts of labelled data, for studying the kernel at task changes."""

from avalanche_ntk.lab.benchmarks.data import LabelledData, load_data
from avalanche_ntk.lab.benchmarks.digits import split_digits
from avalanche_ntk.lab.benchmarks.mixtures import blurred
from avalanche_ntk.lab.benchmarks.sequences import markov_chains, markov_sequences
from avalanche_ntk.lab.benchmarks.shifts import (
    class_frequency_shift,
    class_incremental,
    class_overlap_shift,
    no_shift,
    reachable_similarities,
)
from avalanche_ntk.lab.benchmarks.streams import Description
from avalanche_ntk.lab.benchmarks.transformed import label_permuted, permuted, rotated

# Names allowed in experiments.
SHIFTS = {
    "blurred": blurred,
    "class_frequency": class_frequency_shift,
    "class_incremental": class_incremental,
    "class_overlap": class_overlap_shift,
    "label_permuted": label_permuted,
    "no_shift": no_shift,
    "permuted": permuted,
    "rotated": rotated,
}

__all__ = [
    "SHIFTS",
    "Description",
    "LabelledData",
    "blurred",
    "class_frequency_shift",
    "class_incremental",
    "class_overlap_shift",
    "label_permuted",
    "load_data",
    "markov_chains",
    "markov_sequences",
    "no_shift",
    "permuted",
    "reachable_similarities",
    "rotated",
    "split_digits",
]
