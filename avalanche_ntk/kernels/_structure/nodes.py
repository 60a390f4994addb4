"""Registry of autograd nodes: one entry per kind of operator.

Operators with a rule are registered beside it (`_contract/rules/`), others here. An operator without an entry is
computed exactly too: by its own backward, with its layout checked in every measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from avalanche_ntk.kernels._structure.graph import Node

Rule = Callable[[Any], Any]  # from a `Site` to a `Piece`, see `_contract/rules/`


@dataclass(frozen=True)
class NodeSpec:
    """Properties of one kind of node.

    Attributes:
        rule: Per-sample gradients from its signal; None if its own backward has to compute them.
        factored: Whether the rule gives factors (outer products, rows of a table) and not explicit gradients.
        keeps: Whether samples keep their positions, independent of their values.
        sums: Inputs and their dimensions that it sums over; if these hold samples, it may move samples by values (like
            the one-hot products of a mixture of experts).
        table: Input that must depend on parameters only; otherwise samples are looked up in samples.
        vectorised: Whether its backward takes several cotangents at once.
        loops: Whether several at once take as long as one by one if launches are free.
        chain: Its effect on a tensor made of parameters only: `view` rearranges entries, `scale` multiplies all by one
            factor, `split` cuts it into parts, `sum` adds others, `product` multiplies by a matrix.
    """

    rule: Rule | None = None
    factored: bool | Callable[[Node], bool] = False
    keeps: bool = False
    sums: tuple[tuple[int, int], ...] = ()
    table: int | None = None
    vectorised: bool = True
    loops: bool = False
    chain: str = ""


NODES: dict[str, NodeSpec] = {}
_CUSTOM = NodeSpec(vectorised=False)  # a Python function of any name
# Libraries whose backward passes have no batching rule
_BACKENDS = ("Mkldnn", "Cudnn", "Miopen", "Thnn", "FlashAttention", "EfficientAttention", "CudnnAttention")
_UNNUMBERED = ("torch::autograd::CopySlices", "torch::autograd::CopyBackwards")


def enter(names: str, **fields: Any) -> None:
    """Register operators, by a text of names without `Backward` and its number."""
    for name in names.split():
        assert name not in NODES, name
        NODES[name] = NodeSpec(**({"vectorised": not any(b in name for b in _BACKENDS)} | fields))


def node(names: str, **fields: Any) -> Callable[[Rule], Rule]:
    """Register operators with the decorated rule.

    Returns:
        The decorator.
    """

    def register(rule: Rule) -> Rule:
        enter(names, rule=rule, **({"keeps": True} | fields))
        return rule

    return register


def spec_of(name: str) -> NodeSpec:
    """Return the entry of a node by `node.name()`, such as `AddmmBackward0`, or the default for unknown ones."""
    if name in _UNNUMBERED:
        return NodeSpec(keeps=True)
    bare = name.rstrip("0123456789")
    if bare == name or not bare.endswith("Backward"):
        return _CUSTOM
    bare = bare.removesuffix("Backward")
    found = NODES.get(bare)
    return replace(_CUSTOM, vectorised=not any(b in bare for b in _BACKENDS)) if found is None else found


def is_factored(name: str, at: Node) -> bool:
    """Return whether a node's rule gives factors."""
    factored = spec_of(name).factored
    return factored if isinstance(factored, bool) else factored(at)


# Entry by entry
enter(
    "Abs Acos Acosh Addcdiv Addcmul Angle Asin Asinh Atan Atan2 Atanh BitwiseAnd Ceil Celu Clamp ClampMax"
    " ClampMin Complex Conj ConjPhysical Copysign Cos Cosh Deg2Rad Digamma Dropout Elu Erf Erfc Erfinv Exp Exp2"
    " Expm1 Fill Floor Fmax Fmin Fmod FusedDropout Frac Gelu Hardshrink Hardsigmoid Hardswish Hardtanh Hypot I0"
    " Imag LeakyRelu Lerp Lgamma Log Log10 Log1P Log2 LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill Maximum"
    " Minimum Mish Mvlgamma NanToNum NativeDropout Normal Polar Polygamma Pow Rad2Deg Real Reciprocal Relu Relu6"
    " Remainder Round RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh Softplus Softshrink Sqrt"
    " Square Tan Tanh Threshold Trunc ViewAsComplex ViewAsReal Where Xlogy Zero MultiplyRMSNorm SpecialEntr"
    " SpecialErfcx SpecialNdtri SpecialXlog1Py Glu GluJvp",
    keeps=True,
)
enter("Neg", keeps=True, chain="scale")
# Shapes; operators that only reorder entries count as views in a weight's chain
enter(
    "Alias Clone Contiguous Flip Movedim Permute ReshapeAlias Squeeze T ToCopy Transpose Unsqueeze UnsafeView"
    " View ViewAs",
    keeps=True,
    chain="view",
)
enter("Split SplitWithSizes Unbind Chunk", keeps=True, chain="split")
enter(
    "AsStrided Cat ConstantPadNd Copy Diagonal ExpandAs LiftFresh Narrow Reshape ReshapeCopy Select Slice Stack"
    " Swapaxes Tile Tril Triu Unfold UnsafeSplit ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D"
    " ReplicationPad2D ReplicationPad3D Roll PixelShuffle PixelUnshuffle ChannelShuffle Flatten Unflatten Adjoint"
    " Im2Col Col2Im",
    keeps=True,
)
# Along some dimensions
enter(
    "Aminmax Amax Amin Cummax Cummin Cumprod Cumsum Logcumsumexp Logsumexp LogSoftmax Max Mean Median Min"
    " NanMean Nansum Norm LinalgVectorNorm Prod Softmax SafeSoftmax Std StdMean Sum Var VarMean Dist Trace FftC2C"
    " FftC2R FftR2C AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D"
    " AvgPool2D AvgPool3D MaxPool2DWithIndices MaxPool3DWithIndices MkldnnMaxPool2D FusedRmsNorm RmsNorm"
    " UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D"
    " UpsampleTrilinear3D UpsampleNearestExact1D UpsampleNearestExact2D UpsampleBilinear2DAa UpsampleBicubic2DAa"
    " GridSampler2D GridSampler3D AffineGridGenerator ThnnFusedLstmCell ThnnFusedGruCell CdistEuclidean",
    keeps=True,
)
# Products
enter("Dot", keeps=True, sums=((0, 0), (1, 0)))
enter("Addmv", keeps=True, sums=((1, 1), (2, 0)))
enter("Addbmm", keeps=True, sums=((1, 0), (1, 2), (2, 0), (2, 1)))
enter(
    "ScaledDotProductAttentionMath ScaledDotProductFlashAttention ScaledDotProductFlashAttentionForCpu"
    " ScaledDotProductEfficientAttention ScaledDotProductCudnnAttention"
    " ScaledDotProductFusedAttentionOverrideable",
    keeps=True,
    sums=tuple((k, d) for k in range(3) for d in (-1, -2)),  # queries, keys and values, over positions and features
)
enter("MkldnnConvolution SlowConvDilated2D ThnnConv2D", keeps=True, table=1, vectorised=False)
