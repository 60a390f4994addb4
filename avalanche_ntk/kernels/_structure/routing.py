"""Which graphs may move samples by their values: what was seen of one batch then proves nothing for the next.

Layouts are read off a few samples. They hold for every batch where each operator keeps samples in their places, or
moves them by numbers that are part of the pattern (`pattern.py`). An index, a custom function, or a product that sums
over the samples (a permutation matrix, the dispatch of a mixture of experts) may move them by values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import lcm, prod
from typing import Any

from avalanche_ntk.kernels._structure.graph import Edge, Graph, NotKept, kept

# Operators that leave samples where they are, as long as it is along other dimensions that they act (see `_apart`);
# without the digits
_IN_PLACE = frozenset(
    f"{name}Backward"
    for name in (
        # entry by entry
        "Abs Acos Acosh Add Addcdiv Addcmul Angle Asin Asinh Atan Atan2 Atanh BitwiseAnd Ceil Celu Clamp ClampMax"
        " ClampMin Complex Conj ConjPhysical Copysign Cos Cosh Deg2Rad Digamma Div Dropout Elu Erf Erfc Erfinv Exp Exp2"
        " Expm1 Fill Floor Fmax Fmin Fmod FusedDropout Frac Gelu Hardshrink Hardsigmoid Hardswish Hardtanh Hypot I0"
        " Imag LeakyRelu Lerp Lgamma Log Log10 Log1P Log2 LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill Maximum"
        " Minimum Mish Mul Mvlgamma NanToNum NativeDropout Neg Normal Polar Polygamma Pow PreluKernel Rad2Deg Real"
        " Reciprocal Relu Relu6 Remainder Round RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh"
        " Softplus Softshrink Sqrt Square Sub Tan Tanh Threshold ToCopy Trunc ViewAsComplex ViewAsReal Where Xlogy Zero"
        " MultiplyRMSNorm SpecialEntr SpecialErfcx SpecialNdtri SpecialXlog1Py Glu GluJvp"
        # shapes
        " Alias AsStrided Cat Clone ConstantPadNd Contiguous Copy Diagonal Expand ExpandAs LiftFresh Movedim"
        " Narrow Permute Repeat Reshape ReshapeAlias ReshapeCopy Select Slice Split SplitWithSizes Squeeze Stack"
        " Swapaxes T Tile Transpose Tril Triu Unbind Unfold UnsafeSplit UnsafeView Unsqueeze View ViewAs Chunk"
        " ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D"
        " Flip Roll PixelShuffle PixelUnshuffle ChannelShuffle Flatten Unflatten Adjoint Im2Col"
        " Col2Im"
        # along dimensions that are part of the pattern
        " Aminmax Amax Amin Cummax Cummin Cumprod Cumsum Logcumsumexp Logsumexp LogSoftmax Max Mean Median Min"
        " NanMean Nansum Norm LinalgVectorNorm Prod Softmax SafeSoftmax Std StdMean Sum Var VarMean Dist Trace"
        # layers
        " AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D AvgPool2D AvgPool3D"
        " MaxPool2DWithIndices MaxPool3DWithIndices MkldnnMaxPool2D BatchNorm NativeBatchNorm CudnnBatchNorm"
        " MiopenBatchNorm NativeGroupNorm NativeLayerNorm FusedRmsNorm RmsNorm UpsampleBicubic2D UpsampleBilinear2D"
        " UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleTrilinear3D"
        " UpsampleNearestExact1D UpsampleNearestExact2D UpsampleBilinear2DAa UpsampleBicubic2DAa GridSampler2D"
        " GridSampler3D AffineGridGenerator FftC2C FftC2R FftR2C ThnnFusedLstmCell ThnnFusedGruCell CdistEuclidean"
    ).split()
)
_UNNUMBERED = frozenset({"torch::autograd::CopySlices", "torch::autograd::CopyBackwards"})
# Products, and for each which of its inputs are multiplied and along which of their dimensions they are summed
_PRODUCTS = {
    "MmBackward": ((0, 1), (1, 0)),
    "AddmmBackward": ((1, 1), (2, 0)),
    "BmmBackward": ((0, 2), (1, 1)),
    "BaddbmmBackward": ((1, 2), (2, 1)),
    "MvBackward": ((0, 1), (1, 0)),
    "AddmvBackward": ((1, 1), (2, 0)),
    "AddbmmBackward": ((1, 0), (1, 2), (2, 0), (2, 1)),
    "DotBackward": ((0, 0), (1, 0)),
}
# Attention: queries, keys and values are summed over their last two dimensions
_ATTENTION = "ScaledDotProduct"
# Lookups and convolutions, whose first input, or input and weight, may be made from samples
_LOOKUPS = ("EmbeddingBackward", "EmbeddingBagBackward")
_BATCH_NORMS = ("BatchNormBackward", "NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward")
_CONVOLUTIONS = ("ConvolutionBackward", "MkldnnConvolutionBackward", "SlowConvDilated2DBackward", "ThnnConv2DBackward")


# Operators that act along the dimensions that they keep
_ALONG = frozenset(
    f"{name}Backward"
    for name in (
        "Flip Roll Cumsum Cumprod Cummax Cummin Logcumsumexp Softmax LogSoftmax SafeSoftmax Glu GluJvp Cat FftC2C"
        " FftC2R FftR2C"
    ).split()
)


# Changes of shape that read memory in its order
_RESHAPES = frozenset(
    f"{name}Backward"
    for name in "View UnsafeView Reshape ReshapeAlias ViewAs Flatten Unflatten Clone Contiguous".split()
)


def moves_by_values(small: Graph, n_small: int, large: Graph, n_large: int, pure: list[bool]) -> bool:
    """Tell whether some operator may move samples according to what they hold.

    An operator that moves all samples alike does not by itself, but a mask after it can choose where it does. So only
    those that leave samples in their places are trusted.

    Args:
        small: The graph of a few samples.
        n_small: How many.
        large: The graph of more.
        n_large: How many.
        pure: Which nodes depend on parameters only.

    Returns:
        True where a node is none that is known to keep them in place.
    """
    pair = _Pair(small, n_small, large, n_large, pure)
    return any(not pure[i] and i not in large.owner and not pair.keeps(i) for i in range(len(large.nodes)))


@dataclass(frozen=True)
class _Pair:
    """The same graph for two numbers of samples, with what depends on parameters only."""

    small: Graph
    n_small: int
    large: Graph
    n_large: int
    pure: list[bool]

    def keeps(self, i: int) -> bool:
        """Return whether a node leaves samples in their places."""
        name = self.large.names[i].rstrip("0123456789")
        if name == self.large.names[i] and name not in _UNNUMBERED:
            return False  # a custom function, whatever its name is
        edges = self.large.edges[i]
        if name in _PRODUCTS:
            inside = any(self._grows(edges[slot], dim) for slot, dim in _PRODUCTS[name])
        elif name.startswith(_ATTENTION):
            inside = any(self._grows(e, -1) or self._grows(e, -2) for e in edges[:3])
        elif name in _LOOKUPS or name in _CONVOLUTIONS:
            table = edges[0 if name in _LOOKUPS else 1]
            inside = table is not None and not self.pure[table[0]]
        else:
            inside = name not in _IN_PLACE and name not in _UNNUMBERED and name != "TrilinearBackward"
        try:
            return not inside and self._apart(i, name)
        except NotKept:
            return False

    def _apart(self, i: int, name: str) -> bool:
        """Return whether samples stand along one dimension, and what the node does along others."""
        node = self.large.nodes[i]
        grown = [self._grown((i, k)) for k in range(len(node._input_metadata))]
        # pairs of samples, summed over one of them afterwards, are a product with a matrix in disguise; and what does
        # not grow is a sum over samples, or some of them
        if None in grown or not grown or not grown[0] or any(g is not None and len(g) > 1 for g in grown):
            return False
        shape = self.large.shape((i, 0))
        (d,) = grown[0]
        if name in _ALONG:
            along = _dims(node, len(shape))
            return bool(along) and d not in along
        if name in _RESHAPES:
            return self._reads_in_order(i)
        if name in ("SliceBackward", "SelectBackward"):
            return self._cuts_evenly(i)
        if name == "ConstantPadNdBackward":
            pads = kept(node, "pad")[2 * (len(shape) - 1 - d) :][:2]  # from the last dimension on
            return not any(map(int, pads))
        if name == "RepeatBackward":  # copies of a parameter for each sample, but not of samples
            source = self.large.edges[i][0]
            return int(kept(node, "repeats")[d]) == 1 or source is None or self.pure[source[0]]
        if name == "AsStridedBackward":  # as torch's global mean gives images with channels last
            size, stride = kept(node, "size"), kept(node, "stride")
            return d == 0 and int(stride[0]) == prod(map(int, size[1:])) and not kept(node, "storage_offset")
        if name in _CONVOLUTIONS or name in ("NativeGroupNormBackward", "Im2ColBackward", "Col2ImBackward"):
            return d == 0
        if name in _BATCH_NORMS and kept(node, "training"):  # an instance norm makes N·C channels of the samples
            return d == 1
        if name == "NativeLayerNormBackward" or name == "FusedRmsNormBackward":
            return d < len(shape) - len(kept(node, "normalized_shape"))
        spatial = re.search(r"([123])D", name)
        return spatial is None or d < len(shape) - int(spatial[1])

    def _reads_in_order(self, i: int) -> bool:
        """Return whether a change of shape, and those before it, can be one of samples that stand somewhere.

        Seen from memory, they are `(A, N, B)`. Every shape puts a part of A before the dimension of the samples, and a
        part of B behind it; a matrix `(F, N)` that is read as `(N, F)` has no such A and B.
        """
        before = after = 1
        edge: Edge | None = (i, 0)
        shape = self.large.shape((i, 0))
        while edge is not None:
            grown = self._grown(edge)
            if not grown or len(grown) > 1 or prod(self.large.shape(edge)) != prod(shape):
                break
            here = self.large.shape(edge)
            before = lcm(before, prod(here[: grown[0]]))
            after = lcm(after, prod(here[grown[0] + 1 :]))
            if edge[0] in self.large.owner or self.large.names[edge[0]].rstrip("0123456789") not in _RESHAPES:
                break
            edge = self.large.edges[edge[0]][0]
        return before * after <= prod(shape) // self.n_large

    def _cuts_evenly(self, i: int) -> bool:
        """Return whether a slice takes all samples, or a share of several copies of them; no sample is selected."""
        a, b = self.small.nodes[i], self.large.nodes[i]
        few, more = kept(a, "self_sym_sizes"), kept(b, "self_sym_sizes")
        (dim,) = _dims(b, len(more))
        if few[dim] == more[dim]:
            return True
        if self.large.names[i].startswith("Select"):
            return False
        return int(kept(b, "step")) == 1 and self._proportional(int(kept(a, "start")), int(kept(b, "start")))

    def _proportional(self, a: int, b: int) -> bool:
        return a * self.n_large == b * self.n_small

    def _grown(self, edge: Edge) -> list[int] | None:
        """Return the dimensions that are longer for more samples, None where one does not grow in proportion."""
        a, b = self.small.shape(edge), self.large.shape(edge)
        if len(a) != len(b):
            return None
        grown = [d for d in range(len(a)) if a[d] != b[d]]
        return grown if all(self._proportional(a[d], b[d]) for d in grown) else None

    def _grows(self, edge: Edge | None, dim: int) -> bool:
        if edge is None:  # a constant
            return False
        a, b = self.small.shape(edge), self.large.shape(edge)
        return len(a) != len(b) or a[dim] != b[dim]


def _dims(node: Any, rank: int) -> list[int]:
    """Return the dimensions that a node keeps, from the front; torch gives negative ones as 64 bits without a sign."""
    dims = kept(node, "dims", "dim")
    dims = dims if isinstance(dims, tuple | list) else [dims]
    return [(int(d) - 2**64 if int(d) >= 2**63 else int(d)) % rank for d in dims]
