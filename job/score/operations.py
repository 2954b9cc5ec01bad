"""The table: every operator that is counted, what it costs, and the rule for it.

RULES is the challenge's scoring page (micronet-challenge.github.io), COUNTER the organisers' own counter
(google-research, micronet_challenge/counting.py). What neither names is written out, by its definition,
in multiplications, additions and transcendental functions, and those are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from job.errors import UsageError
from job.score import formulas as f
from job.score import quantised as q
from job.score.graph import Operation


@dataclass(frozen=True)
class Row:
    """The kind that an operator is summed under, its cost, and the rule that the cost follows."""

    kind: str
    cost: f.Formula
    rule: str


TABLE: dict[str, Row] = {}


def _row(names: str, kind: str, cost: f.Formula, rule: str, namespace: str = "aten") -> None:
    for name in names.split():
        TABLE[f"{namespace}.{name}"] = Row(kind, cost, rule)


DOT = "COUNTER: a dot product of n terms is n multiplications and n - 1 additions, a bias one addition more"
ATTENTION = "Definition: softmax(Q K^T * scale + mask) V; dot products as above, the softmax as below"

_row("convolution", "conv", f.convolution, DOT)
_row("mm bmm", "linear", q.quantises_input(f.matrix_product("self", "mat2"), "self", "mat2"), DOT)
_row("addmm", "linear", q.quantises_input(f.matrix_product("mat1", "mat2", "self"), "mat1", "mat2"), DOT)
_row("baddbmm", "linear", f.matrix_product("batch1", "batch2", "self"), DOT)
_row("mv", "linear", f.matrix_product("self", "vec"), DOT)
_row("addmv", "linear", f.matrix_product("mat", "vec", "self"), DOT)
_row("dot", "linear", f.matrix_product("self", "tensor"), DOT)

LSTM = "Definition: i, f, o of sigmoid and g of tanh, c = f * c + i * g, h = o * tanh(c); " + DOT
_row("mkldnn_rnn_layer", "recurrent", f.lstm, LSTM)

_ATTENTION = "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu"
_row(_ATTENTION, "attention", f.attention, ATTENTION)

MEAN = "COUNTER: a mean of n values is n - 1 additions and one multiplication"
SUM = "COUNTER: adding n values is n - 1 additions"
COMPARISON = "A comparison is a subtraction: one addition"

_row("mean", "pool", f.mean, MEAN)
_row("avg_pool2d avg_pool3d", "pool", f.window_mean, MEAN)
_row("_adaptive_avg_pool2d _adaptive_avg_pool3d", "pool", f.adaptive_mean, MEAN)
_POOLS = "max_pool2d_with_indices max_pool3d_with_indices quantized_max_pool2d"
_row(_POOLS, "max pool", f.window_maximum, COMPARISON)
_row("adaptive_max_pool2d adaptive_max_pool3d", "max pool", f.adaptive_maximum, COMPARISON)
_row("prod", "reduction", f.reduced((1, 0), (-1, 0), own_width=True), "As SUM, with multiplications")
_row("sum", "reduction", f.total, SUM)
_row("cumsum", "reduction", f.along((0, 1), (0, -1)), SUM)
_row("max min amax amin argmax argmin", "reduction", f.reduced((0, 1), (0, -1), own_width=True), COMPARISON)
_row("var var_mean", "reduction", f.reduced((1, 3), (2, -2)), "Definition: the mean of (x - mean)^2")
_row("std std_mean", "reduction", f.reduced((1, 3), (3, -2)), "Definition: sqrt(the mean of (x - mean)^2)")
_row("linalg_vector_norm norm", "reduction", f.reduced((1, 1), (1, -1)), "Definition: (sum of |x|^p)^(1/p)")

STANDING = "x * a + b, a and b known ahead of time; COUNTER has only folded ones (see patterns.py)"
NORMALISED = "Definition: (x - mean) / sqrt(variance + eps) * weight + bias"

_row("native_batch_norm", "norm", f.batch_norm, STANDING)
_row("_native_batch_norm_legit_no_training", "norm", f.batch_norm, STANDING)
_row("_native_batch_norm_legit", "norm", f.batch_norm, NORMALISED)
_row("native_layer_norm", "norm", f.layer_norm, NORMALISED)
_row("native_group_norm", "norm", f.group_norm, NORMALISED)

RELU = "COUNTER: a ReLU is one multiplication an element, so that the freebie covers it"
CLAMP = "A ReLU with other bounds: as COUNTER's ReLU"
SLOPED = "Definition: max(x, 0) + slope * min(x, 0): a ReLU and a multiplication"
SIGMOID = "COUNTER: exp(x) / (1 + exp(x)) is 2 multiplications and one addition"
SWISH = "COUNTER: x / (1 + exp(-x)) is 3 multiplications and one addition"
FUNCTION = "RULES: a transcendental function is one operation; as in COUNTER's sigmoid a multiplication"

_row("relu", "relu", f.each(1, 0), RELU)
_row("hardtanh clamp clamp_min clamp_max threshold", "relu", f.each(1, 0), CLAMP)
_row("leaky_relu _prelu_kernel", "relu", f.each(2, 0), SLOPED)
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
_row("_softmax _safe_softmax", "softmax", f.along((2, 1), (0, -1)), "Definition: exp(x) / sum(exp(x))")
_row("_log_softmax", "softmax", f.along((1, 2), (1, -1)), "Definition: x - log(sum(exp(x)))")
_row("logsumexp", "softmax", f.reduced((1, 1), (1, -1)), "Definition: log(sum(exp(x)))")
_FUNCTIONS = """
exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh
atanh erf erfc
"""
_row(_FUNCTIONS, "activation", f.each(1, 0), FUNCTION)
_row("pow", "activation", f.power, FUNCTION + "; x^n for n of 2 to 4 is n - 1 multiplications")

ADDITION = "COUNTER, Add: one addition an element"
PRODUCT = "COUNTER, Scale: one multiplication an element; a division is one too, as in its GlobalAvg"
BITWISE = "RULES: a bitwise operation is one operation; an addition here, which no freebie halves"

_row("add sub rsub", "add", f.sum_of_two, ADDITION)
_row("mul", "multiply", f.each(1, 0), PRODUCT)
_row("div", "multiply", f.quotient, PRODUCT + "; rounding the quotient is one addition, as below")
_row("reciprocal", "multiply", f.each(1, 0), PRODUCT)
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

_row("channel_shuffle index index_select gather take", "permutation", f.reorder, PERMUTED)

MOVED = "No arithmetic: values are named anew, or copied in an order that strides describe"

_MOVES = """
alias as_strided cat clone constant_pad_nd copy detach diagonal embedding expand flip im2col lift_fresh
permute pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat
replication_pad1d replication_pad2d replication_pad3d roll rot90 select select_scatter slice slice_scatter
split split_with_sizes squeeze stack t transpose tril triu unbind unfold unsafe_split
unsafe_split_with_sizes unsqueeze upsample_nearest1d
upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d view _unsafe_view
"""
_row(_MOVES, "move", f.free, MOVED)
_FILLS = """
arange empty empty_like empty_strided eye fill full full_like linspace new_empty new_empty_strided new_full
new_ones new_zeros ones ones_like scalar_tensor zero zeros zeros_like
"""
_row(_FILLS, "fill", f.free, "No arithmetic: a fill")
_CONVERSION = "RULES: conversions between formats that float32 represents exactly are not tallied"
_row("_to_copy", "move", f.free, _CONVERSION)


SCALED = (
    "RULES waive conversions, so rounding and clamping to levels; a scale that is no power of two and a zero"
    " point are arithmetic (quantised.py), unless what follows absorbs them (conversions.py)"
)

_FAKE = """
fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fused_moving_avg_obs_fq_helper
_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
"""
_row(_FAKE, "quantise", q.quantise, SCALED)
_row("quantize_per_tensor", "quantise", q.quantise, SCALED)
_row("dequantize", "dequantise", q.dequantise, SCALED)
_row("quantize_per_tensor quantize_per_channel", "quantise", q.quantise, SCALED, "quantized_decomposed")
_DEQUANTISE = "dequantize_per_tensor dequantize_per_channel"
_row(_DEQUANTISE, "dequantise", q.dequantise, SCALED, "quantized_decomposed")
_row("conv1d conv2d conv3d", "conv", q.quantised_conv, f"{DOT}; {SCALED}", "quantized")
_row("conv1d_relu conv2d_relu conv3d_relu", "conv", q.quantised_conv, f"{DOT}; {SCALED}; {RELU}", "quantized")
_row("linear linear_relu", "linear", q.quantised_linear, f"{DOT}; {SCALED}; {RELU}", "quantized")
_DYNAMIC = "linear_dynamic linear_relu_dynamic"
_row(_DYNAMIC, "linear", q.quantised_linear_dynamic, f"{DOT}; {SCALED}", "quantized")
_row("add add_relu", "add", q.quantised_add, f"{ADDITION}; {SCALED}", "quantized")
_row("mul", "multiply", q.quantised_mul, f"{PRODUCT}; {SCALED}", "quantized")
_row("cat", "quantise", f.composed(1, 1), SCALED, "quantized")
_row("relu6", "relu", f.each(1, 0), CLAMP, "quantized")
_row(
    "hardswish",
    "activation",
    f.composed(5, 3),
    f"As hardswish, between two conversions; {SCALED}",
    "quantized",
)


def is_fill(name: str) -> bool:
    """Return whether operator `name` fills a tensor without reading it."""
    return name in TABLE and TABLE[name].kind == "fill"


def is_move(name: str) -> bool:
    """Return whether operator `name` only moves values, so that a moved constant stays the same constant."""
    return name in TABLE and TABLE[name].kind in ("fill", "move", "permutation", "dequantise")


def is_counted(row: Row | None) -> bool:
    """Return whether operators of this row are counted: neither unknown nor a fill or a move."""
    return row is not None and row.kind not in ("fill", "move")


OwnRule = Callable[[Operation], tuple[int, int] | None]
"""A user's rule: the multiplications and additions of one operation; None if it does not know it."""


def own_count(rules: Sequence[OwnRule], op: Operation) -> tuple[int, int] | None:
    """Return the count by the first of `rules` that knows `op`; None where none does.

    Raises UsageError where it is no count.
    """
    for rule in rules:
        counted = rule(op)
        if counted is None:
            continue
        if not (
            isinstance(counted, tuple)
            and len(counted) == 2
            and all(type(number) is int and number >= 0 for number in counted)
        ):
            name = f"{getattr(rule, '__module__', '')}:{getattr(rule, '__name__', '')}"
            raise UsageError(
                f"--rule: {name} returned {counted!r} for {op.name}",
                "Return (multiplications, additions), or None for operators that it does not know",
            )
        return counted
    return None


def own_row(rules: Sequence[OwnRule]) -> Row:
    """Return the row of an operator that `rules` count, at the width of what the operator reads."""

    def cost(op: Operation, _sparse: f.IsSparse) -> list[f.Term]:
        counted = own_count(rules, op)
        return [] if counted is None else [f.Term(*counted, op.reads)]  # None: it is listed as unknown

    return Row("own rule", cost, "The user's own")
