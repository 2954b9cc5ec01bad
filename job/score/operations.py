"""The table: every operator that is counted, what it costs, and the rule that says so.

RULES is the challenge's scoring page (micronet-challenge.github.io), COUNTER the organisers' own counter
(google-research, micronet_challenge/counting.py). What neither names is written out, by its definition,
in multiplications, additions and transcendental functions, and those are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from job.score import formulas as f
from job.score import reductions as r


@dataclass(frozen=True)
class Row:
    """What an operator is summed under, what it costs, and the rule the cost follows."""

    kind: str
    cost: f.Formula
    rule: str


TABLE: dict[str, Row] = {}


def _row(names: str, kind: str, cost: f.Formula, rule: str, namespace: str = "aten") -> None:
    for name in names.split():
        TABLE[f"{namespace}.{name}"] = Row(kind, cost, rule)


DOT = "COUNTER: a dot product of n terms is n multiplications and n - 1 additions, a bias one addition more"

_row("convolution _convolution", "conv", f.convolution, DOT)
_row("linear", "linear", f.linear, DOT)
_row("mm bmm", "linear", f.matrix_product("self", "mat2"), DOT)
_row("addmm", "linear", f.matrix_product("mat1", "mat2", "self"), DOT)
_row("baddbmm", "linear", f.matrix_product("batch1", "batch2", "self"), DOT)
_row("mv", "linear", f.matrix_product("self", "vec"), DOT)
_row("addmv", "linear", f.matrix_product("mat", "vec", "self"), DOT)
_row("dot vdot", "linear", f.matrix_product("self", "tensor"), DOT)

_ATTENTION = """
_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math
"""
_row(_ATTENTION, "attention", f.attention, "Definition: softmax(Q K^T * scale + mask) V, each step as below")

MEAN = "COUNTER: a mean of n values is n - 1 additions and one multiplication"
SUM = "COUNTER: adding n values is n - 1 additions"
COMPARISON = "A comparison is a subtraction: one addition"

_row("mean", "pool", r.mean, MEAN)
_row("avg_pool1d avg_pool2d avg_pool3d", "pool", r.window_mean, MEAN)
_row("_adaptive_avg_pool2d _adaptive_avg_pool3d", "pool", r.adaptive_mean, MEAN)
_row("max_pool1d max_pool2d max_pool3d quantized_max_pool2d", "max pool", r.window_maximum, COMPARISON)
_row("max_pool2d_with_indices max_pool3d_with_indices", "max pool", r.window_maximum, COMPARISON)
_row("adaptive_max_pool2d adaptive_max_pool3d", "max pool", r.adaptive_maximum, COMPARISON)
_row("sum", "reduction", r.total, SUM)
_row("cumsum", "reduction", r.running_total, SUM)
_row("max min amax amin argmax argmin", "reduction", r.maximum, COMPARISON)
_row("var var_mean", "reduction", r.variance(0), "Definition: the mean of (x - mean)^2")
_row("std std_mean", "reduction", r.variance(1), "Definition: sqrt(the mean of (x - mean)^2)")
_row("linalg_vector_norm norm", "reduction", r.vector_norm, "Definition: (sum of |x|^p)^(1/p)")

STANDING = "x * a + b, a and b known ahead of time; COUNTER has only folded ones (see folding.py)"
NORMALISED = "Definition: (x - mean) / sqrt(variance + eps) * weight + bias"

_row("native_batch_norm cudnn_batch_norm miopen_batch_norm", "norm", r.batch_norm, STANDING)
_row("_native_batch_norm_legit_no_training", "norm", r.batch_norm, STANDING)
_row("_native_batch_norm_legit", "norm", r.batch_norm, NORMALISED)
_row("native_layer_norm", "norm", r.layer_norm, NORMALISED)
_row("native_group_norm", "norm", r.group_norm, NORMALISED)
_row("_fused_rms_norm", "norm", r.rms_norm, "Definition: x / sqrt(mean(x^2) + eps) * weight")

RELU = "COUNTER: a ReLU is one multiplication an element, so that the freebie covers it"
CLAMP = "A ReLU with other bounds: as COUNTER's ReLU"
SLOPED = "Definition: max(x, 0) + slope * min(x, 0): a ReLU and a multiplication"
SIGMOID = "COUNTER: exp(x) / (1 + exp(x)) is 2 multiplications and one addition"
SWISH = "COUNTER: x / (1 + exp(-x)) is 3 multiplications and one addition"
FUNCTION = "RULES: a transcendental function is one operation; as in COUNTER's sigmoid a multiplication"

_row("relu", "relu", f.each(1, 0), RELU)
_row("hardtanh clamp clamp_min clamp_max relu6 threshold", "relu", f.each(1, 0), CLAMP)
_row("leaky_relu prelu _prelu_kernel rrelu_with_noise", "relu", f.each(2, 0), SLOPED)
_row("sigmoid", "activation", f.composed(2, 1), SIGMOID)
_row("silu", "activation", f.composed(3, 1), SWISH)
_row("hardsigmoid", "activation", f.composed(2, 1), "Definition: relu6(x + 3) * 1/6")
_row("hardswish", "activation", f.composed(3, 1), "Definition: x * relu6(x + 3) * 1/6")
_row("elu", "activation", f.composed(3, 1), "Definition: x, or alpha * (exp(x) - 1); choosing is a ReLU")
_row("gelu", "activation", f.gelu, "Definition: x/2 * (1 + erf(x / sqrt(2))), or its tanh approximation")
_row("softplus", "activation", f.composed(2, 1), "Definition: log(1 + exp(x))")
_row("log_sigmoid_forward", "activation", f.composed(2, 1), "Definition: -log(1 + exp(-x))")
_row("mish", "activation", f.composed(4, 1), "Definition: x * tanh(log(1 + exp(x)))")
_row("glu", "activation", f.composed(3, 1), "Definition: x * sigmoid(y), " + SIGMOID)
_row("_softmax _safe_softmax softmax", "softmax", f.softmax, "Definition: exp(x) / sum(exp(x))")
_row("_log_softmax log_softmax", "softmax", f.log_softmax, "Definition: x - log(sum(exp(x)))")
_row("logsumexp", "softmax", r.log_sum_exp, "Definition: log(sum(exp(x)))")
_FUNCTIONS = """
exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh
atanh erf erfc
"""
_row(_FUNCTIONS, "activation", f.each(1, 0), FUNCTION)
_row("pow", "activation", f.power, FUNCTION + "; x^n for n of 2 to 4 is n - 1 multiplications")
_row("square", "multiply", f.each(1, 0), "Definition: x * x")

ADDITION = "COUNTER, Add: one addition an element"
PRODUCT = "COUNTER, Scale: one multiplication an element; a division is one too, as in its GlobalAvg"
BITWISE = "RULES: a bitwise operation is one operation; an addition here, which no freebie halves"

_row("add sub rsub", "add", f.sum_of_two, ADDITION)
_row("mul multiply", "multiply", f.each(1, 0), PRODUCT)
_row("div reciprocal", "multiply", f.each(1, 0), PRODUCT)
_row("addcmul addcdiv", "multiply", f.each(2, 1), PRODUCT + "; self + value * a * b")
_row("lerp", "multiply", f.each(1, 2), "Definition: a + weight * (b - a)")
_row("maximum minimum eq ne lt le gt ge", "comparison", f.each(0, 1), COMPARISON)
_row("where masked_fill sign sgn abs neg", "comparison", f.each(0, 1), BITWISE)
_row("logical_and logical_or logical_not logical_xor", "comparison", f.each(0, 1), BITWISE)
_row("bitwise_and bitwise_or bitwise_not bitwise_xor", "comparison", f.each(0, 1), BITWISE)
_row("floor ceil round trunc", "comparison", f.each(0, 1), BITWISE)

WEIGHTED = "A dot product (COUNTER) with the neighbours' weights, which the two sizes fix ahead of time"

_row("upsample_linear1d", "interpolation", f.each(2, 1), WEIGHTED)
_row("upsample_bilinear2d", "interpolation", f.each(4, 3), WEIGHTED)
_row("upsample_trilinear3d", "interpolation", f.each(8, 7), WEIGHTED)
_row("upsample_bicubic2d", "interpolation", f.each(16, 15), WEIGHTED)

PERMUTED = "RULES, FAQ: a permutation is the product with a sparse matrix: one multiplication a value"

_row("channel_shuffle native_channel_shuffle", "permutation", f.each(1, 0), PERMUTED)
_row("index index_select gather take", "permutation", f.each(1, 0), PERMUTED)

MOVED = "No arithmetic: values are named anew, or copied in an order that strides describe"

_MOVES = """
alias as_strided cat chunk clone constant_pad_nd contiguous copy detach diagonal embedding expand flip
im2col lift_fresh narrow permute pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
reflection_pad3d repeat replication_pad1d replication_pad2d replication_pad3d reshape roll select
select_scatter slice slice_scatter split split_with_sizes squeeze stack t transpose unbind unfold unsqueeze
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d view _reshape_alias _unsafe_view view_as
"""
_row(_MOVES, "move", f.free, MOVED)
_FILLS = """
arange empty empty_like empty_strided eye fill full full_like linspace new_empty new_empty_strided new_full
new_ones new_zeros ones ones_like scalar_tensor zero zeros zeros_like
"""
_row(_FILLS, "move", f.free, "No arithmetic: a fill")
_CONVERSION = "RULES: conversions between formats that float32 represents exactly are not tallied"
_row("_to_copy to type_as", "move", f.free, _CONVERSION)


def moves(name: str) -> bool:
    """Return whether operator `name` only moves values, so that a moved constant is the same constant."""
    row = TABLE.get(name)
    return row is not None and row.kind in ("move", "permutation")
