"""Observables: optional quantities measured beside the kernel, at each measurement or at the boundaries.

Pass them to the plugin (`NTKPlugin(observe=[PerLayer()])`), or request the metrics that need them (`ntk_metrics(ntk,
per_layer=True)`).
"""

from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.blocks import ClassBlocks
from avalanche_ntk.observables.buffers import BufferShare
from avalanche_ntk.observables.declaration import Image, Metric
from avalanche_ntk.observables.features import FeatureKernel
from avalanche_ntk.observables.forecast import StaticKernelForecast
from avalanche_ntk.observables.forgetting import ForgettingForecast
from avalanche_ntk.observables.layers import PerLayer
from avalanche_ntk.observables.linearisation import Linearisation
from avalanche_ntk.observables.neurons import Neurons
from avalanche_ntk.observables.overlap import TaskOverlap
from avalanche_ntk.observables.plasticity import Plasticity
from avalanche_ntk.observables.registry import families, register
from avalanche_ntk.observables.regression import KernelRegression

__all__ = [
    "BufferShare",
    "ClassBlocks",
    "FeatureKernel",
    "ForgettingForecast",
    "Image",
    "KernelRegression",
    "Linearisation",
    "Metric",
    "Moment",
    "Neurons",
    "Observable",
    "Observation",
    "PerLayer",
    "Plasticity",
    "StaticKernelForecast",
    "TaskOverlap",
    "families",
    "register",
]
