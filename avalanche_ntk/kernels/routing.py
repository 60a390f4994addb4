"""Which graphs may move samples by their values: what was seen of one batch then proves nothing for the next.

Layouts are read off a few samples. They hold for every batch where each operator keeps samples in their places, or
moves them by numbers that are part of the pattern (`pattern.py`). An index, a custom function, or a product that sums
over the samples (a permutation matrix, the dispatch of a mixture of experts) may move them by values.
"""

from __future__ import annotations

from math import prod

from avalanche_ntk.kernels.graph import Edge, Graph

# Operators that leave samples where they are, or move them by shapes and whole numbers alone; without the digits
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
        " Col2Im Meshgrid"
        # along dimensions that are part of the pattern
        " Aminmax Amax Amin Cummax Cummin Cumprod Cumsum Logcumsumexp Logsumexp LogSoftmax Max Mean Median Min"
        " NanMean Nansum Norm LinalgVectorNorm Prod Softmax SafeSoftmax Std StdMean Sum Var VarMean Renorm Dist Trace"
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
_CONVOLUTIONS = ("ConvolutionBackward", "MkldnnConvolutionBackward", "SlowConvDilated2DBackward", "ThnnConv2DBackward")


def moves_by_values(small: Graph, large: Graph, pure: list[bool], growth: float) -> bool:
    """Tell whether some operator may move samples according to what they hold.

    Args:
        small: The graph of a few samples.
        large: The graph of more.
        pure: Which nodes depend on parameters only.
        growth: By which factor there are more.

    Returns:
        True where a node is none that is known to keep them in place.
    """
    return any(not pure[i] and not _keeps(small, large, pure, growth, i) for i in range(len(large.nodes)))


def _keeps(small: Graph, large: Graph, pure: list[bool], growth: float, i: int) -> bool:
    if i in large.owner:
        return True
    name = large.names[i].rstrip("0123456789")
    if name == large.names[i] and name not in _UNNUMBERED:
        return False  # a custom function, whatever its name is
    edges = large.edges[i]
    if name in _IN_PLACE or name in _UNNUMBERED:
        # pairs of samples, summed over one of them afterwards, are a product with a matrix in disguise
        return all(
            prod(large.shape((i, k))) <= 1.01 * growth * max(1, prod(small.shape((i, k))))
            for k in range(len(large.nodes[i]._input_metadata))
        )
    if name in _PRODUCTS:
        return not any(_grows(small, large, edges[slot], dim) for slot, dim in _PRODUCTS[name])
    if name.startswith(_ATTENTION):
        return not any(_grows(small, large, e, -1) or _grows(small, large, e, -2) for e in edges[:3])
    if name in _LOOKUPS or name in _CONVOLUTIONS:
        table = edges[0 if name in _LOOKUPS else 1]
        return table is None or pure[table[0]]
    return name == "TrilinearBackward"


def _grows(small: Graph, large: Graph, edge: Edge | None, dim: int) -> bool:
    if edge is None:  # a constant
        return False
    a, b = small.shape(edge), large.shape(edge)
    return len(a) != len(b) or a[dim] != b[dim]
