"""TTT-Linear with kernels of its own for a GPU: one launch forward, and one backward, for any number of mini-batches.

A program has one sequence and head, and walks the mini-batches with the inner model's weight `[d_head, d_head]` and
bias in registers. Queries, keys, values and outputs are read and written once; training also writes and reads
`4 * d_head` bytes a token and head, the inner gradients: the backward kernel starts from the last weights and takes
each step back by subtracting it again, so that no weights are stored for a mini-batch. That leaves the rounding of one
addition a mini-batch, about the square root of their number times 2^-24 of the weights' size.

Features are padded to a power of two, from 16 to 64, and the tokens of a mini-batch to 16. Tokens of a mini-batch that
is not whole, at the start or the end of a call, are `chunked`'s.

Weights, LayerNorm and all sums are float32. Products are TF32 if the inputs have 16 bits, or where
torch allows it for matrix products, else three TF32 products, which are about as exact as IEEE float32.

No GPU has run this yet; the kernels compile for one. On Hopper the backward kernel spills some 400 bytes a thread for
64 features of 16 bits, 1,700 for float32: to try there are its two halves, outputs and steps, in kernels of their own.

On a CPU the kernels run in Triton's interpreter, far too slow for anything but tests, and only if the environment
variable TRITON_INTERPRET is 1 before triton is first imported. There they also take float64.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...tf32 import tf32_allowed
from ..inner_model import Layers
from . import MOST_TOKENS, chunked
from .reference import EPSILON as _EPSILON

EPSILON = tl.constexpr(_EPSILON)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)


@triton.jit
def _mean(x, d):
    """Of each row; features that are padding hold 0."""
    return tl.sum(x, axis=1)[:, None] / d


@triton.jit
def _normalise(z, real, d):
    """LayerNorm `[BLOCK_T, BLOCK_D]` without weight and bias, and 1 / standard deviation; real: not padding."""
    centred = tl.where(real, z - _mean(z, d), 0.0)
    inverse = 1 / tl.sqrt(_mean(centred * centred, d) + EPSILON)
    return centred * inverse, inverse


@triton.jit
def _through_norm(x, normal, inverse, real, d):
    """The gradient at what is normalised, from that at the result."""
    return tl.where(real, (x - _mean(x, d) - normal * _mean(x * normal, d)) * inverse, 0.0)


@triton.jit
def _load_tokens(pointer, n, size, token, feature, real, stride, TYPE: tl.constexpr):
    """Of the n-th mini-batch: `[BLOCK_T, BLOCK_D]`."""
    row = n * size + token
    mask = (token[:, None] < size) & real
    return tl.load(pointer + row[:, None] * stride + feature[None, :], mask=mask, other=0.0).to(TYPE)


@triton.jit
def _store_tokens(pointer, x, n, size, token, feature, real, stride):
    row = n * size + token
    mask = (token[:, None] < size) & real
    tl.store(pointer + row[:, None] * stride + feature[None, :], x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _reading(q, k, factor, token, PRECISION: tl.constexpr):
    """How each token meets those up to itself, and what it multiplies their gradients with `[BLOCK_T, BLOCK_T]`."""
    similarity = tl.where(token[:, None] >= token[None, :], _dot(q, tl.trans(k), PRECISION) + 1, 0.0)
    return similarity, factor[:, None] * similarity


@triton.jit(do_not_specialize=["mini_batches"])
def _forward_kernel(
    queries, keys, values, step_sizes, norm_weight, norm_bias, scale, weight, bias,
    outputs, gradients, weight_after, bias_after, mini_batches, size, heads, d,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, s_batch, s_token, s_head,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    TYPE: tl.constexpr = weight.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    row, head = program // heads, program % heads
    token, feature = tl.arange(0, BLOCK_T).to(tl.int64), tl.arange(0, BLOCK_D)
    real = feature[None, :] < d
    queries += row * q_batch + head * q_head
    keys += row * k_batch + head * k_head
    values += row * v_batch + head * v_head
    step_sizes += row * s_batch + head * s_head
    first = row * mini_batches * size * heads * d + head * d
    outputs += first
    gradients += first
    gamma = tl.load(norm_weight + head * d + feature, mask=feature < d, other=0.0)[None, :]
    beta = tl.load(norm_bias + head * d + feature, mask=feature < d, other=0.0)[None, :]
    factor = -tl.load(scale + token, mask=token < size, other=0.0)
    factor_last = -tl.load(scale + size - 1)
    square = program * d * d + feature[:, None] * d + feature[None, :]
    in_square = (feature[:, None] < d) & real
    w = tl.load(weight + square, mask=in_square, other=0.0)
    b = tl.load(bias + program * d + feature, mask=feature < d, other=0.0)[None, :]
    for n in range(mini_batches):
        q = _load_tokens(queries, n, size, token, feature, real, q_token, TYPE)
        k = _load_tokens(keys, n, size, token, feature, real, k_token, TYPE)
        v = _load_tokens(values, n, size, token, feature, real, v_token, TYPE)
        place = n * size + token
        step = tl.load(step_sizes + place * s_token, mask=token < size, other=0.0).to(TYPE)[:, None]
        normal, inverse = _normalise(_dot(k, w, PRECISION) + b, real, d)
        outer = gamma * (gamma * normal + beta - v + k)
        learned = step * _through_norm(outer, normal, inverse, real, d)
        if KEEP:
            _store_tokens(gradients, learned, n, size, token, feature, real, heads * d)
        _, factors = _reading(q, k, factor, token, PRECISION)
        z = _dot(q, w, PRECISION) + b + _dot(factors, learned, PRECISION)
        read, _ = _normalise(z, real, d)
        _store_tokens(outputs, q + gamma * read + beta, n, size, token, feature, real, heads * d)
        w += _dot(tl.trans(factor_last * k), learned, PRECISION)
        b += factor_last * tl.sum(learned, axis=0)[None, :]
    tl.store(weight_after + square, w, mask=in_square)
    tl.store(bias_after + program * d + feature[None, :], b, mask=real)


@triton.jit(do_not_specialize=["mini_batches"])
def _backward_kernel(
    queries, keys, values, step_sizes, norm_weight, norm_bias, scale, weight_after, bias_after, gradients,
    d_outputs, d_weight_after, d_bias_after,
    d_queries, d_keys, d_values, d_step_sizes, d_norm_weight, d_norm_bias, d_scale, d_weight, d_bias,
    mini_batches, size, heads, d,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, s_batch, s_token, s_head,
    PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    TYPE: tl.constexpr = weight_after.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    row, head = program // heads, program % heads
    token, feature = tl.arange(0, BLOCK_T).to(tl.int64), tl.arange(0, BLOCK_D)
    real = feature[None, :] < d
    queries += row * q_batch + head * q_head
    keys += row * k_batch + head * k_head
    values += row * v_batch + head * v_head
    step_sizes += row * s_batch + head * s_head
    first = row * mini_batches * size * heads * d + head * d
    gradients += first
    d_outputs += first
    d_queries += first
    d_keys += first
    d_values += first
    d_step_sizes += row * mini_batches * size * heads + head
    gamma = tl.load(norm_weight + head * d + feature, mask=feature < d, other=0.0)[None, :]
    beta = tl.load(norm_bias + head * d + feature, mask=feature < d, other=0.0)[None, :]
    factor = -tl.load(scale + token, mask=token < size, other=0.0)
    factor_last = -tl.load(scale + size - 1)
    square = program * d * d + feature[:, None] * d + feature[None, :]
    in_square = (feature[:, None] < d) & real
    w = tl.load(weight_after + square, mask=in_square, other=0.0)
    b = tl.load(bias_after + program * d + feature, mask=feature < d, other=0.0)[None, :]
    d_w = tl.load(d_weight_after + square, mask=in_square, other=0.0)
    d_b = tl.load(d_bias_after + program * d + feature, mask=feature < d, other=0.0)[None, :]
    d_gamma = tl.zeros([1, BLOCK_D], TYPE)
    d_beta = tl.zeros([1, BLOCK_D], TYPE)
    d_factor = tl.zeros([BLOCK_T], TYPE)
    for reverse in range(mini_batches):
        n = mini_batches - 1 - reverse
        q = _load_tokens(queries, n, size, token, feature, real, q_token, TYPE)
        k = _load_tokens(keys, n, size, token, feature, real, k_token, TYPE)
        v = _load_tokens(values, n, size, token, feature, real, v_token, TYPE)
        learned = _load_tokens(gradients, n, size, token, feature, real, heads * d, TYPE)
        d_out = _load_tokens(d_outputs, n, size, token, feature, real, heads * d, TYPE)
        place = n * size + token
        step = tl.load(step_sizes + place * s_token, mask=token < size, other=0.0).to(TYPE)[:, None]
        # the weights that this mini-batch began with
        w -= _dot(tl.trans(factor_last * k), learned, PRECISION)
        b -= factor_last * tl.sum(learned, axis=0)[None, :]
        # back through the outputs
        similarity, factors = _reading(q, k, factor, token, PRECISION)
        read, read_inverse = _normalise(_dot(q, w, PRECISION) + b + _dot(factors, learned, PRECISION), real, d)
        d_z_read = _through_norm(gamma * d_out, read, read_inverse, real, d)
        d_factors = _dot(d_z_read, tl.trans(learned), PRECISION)
        d_similarity = tl.where(token[:, None] >= token[None, :], factor[:, None] * d_factors, 0.0)
        d_factor += tl.sum(d_factors * similarity, axis=1)
        d_q = d_out + _dot(d_z_read, tl.trans(w), PRECISION) + _dot(d_similarity, k, PRECISION)
        _store_tokens(d_queries, d_q, n, size, token, feature, real, heads * d)
        # back through the step of the weights
        met = _dot(k, d_w, PRECISION) + d_b
        d_learned = _dot(tl.trans(factors), d_z_read, PRECISION) + factor_last * met
        d_factor += tl.where(token == size - 1, tl.sum(learned * met), 0.0)
        d_k = factor_last * _dot(learned, tl.trans(d_w), PRECISION) + _dot(tl.trans(d_similarity), q, PRECISION)
        # back through the inner gradient
        normal, inverse = _normalise(_dot(k, w, PRECISION) + b, real, d)
        error = gamma * normal + beta - v + k
        outer = gamma * error
        gradient = _through_norm(outer, normal, inverse, real, d)
        tl.store(d_step_sizes + place * heads, tl.sum(d_learned * gradient, axis=1), mask=token < size)
        d_gradient = step * d_learned
        d_outer = _through_norm(d_gradient, normal, inverse, real, d)
        d_error = gamma * d_outer
        d_normal = gamma * d_error
        d_normal -= inverse * (d_gradient * _mean(outer * normal, d) + outer * _mean(d_gradient * normal, d))
        d_z = _through_norm(d_normal, normal, inverse, real, d)
        d_z -= inverse * normal * _mean(d_gradient * gradient, d)
        d_k += d_error + _dot(d_z, tl.trans(w), PRECISION)
        _store_tokens(d_keys, d_k, n, size, token, feature, real, heads * d)
        _store_tokens(d_values, -d_error, n, size, token, feature, real, heads * d)
        d_gamma += tl.sum(d_out * read + d_outer * error + d_error * normal, axis=0)[None, :]
        d_beta += tl.sum(d_out + d_error, axis=0)[None, :]
        d_w += _dot(tl.trans(q), d_z_read, PRECISION) + _dot(tl.trans(k), d_z, PRECISION)
        d_b += tl.sum(d_z_read + d_z, axis=0)[None, :]
    tl.store(d_weight + square, d_w, mask=in_square)
    tl.store(d_bias + program * d + feature[None, :], d_b, mask=real)
    tl.store(d_norm_weight + program * d + feature[None, :], d_gamma, mask=real)
    tl.store(d_norm_bias + program * d + feature[None, :], d_beta, mask=real)
    tl.store(d_scale + program * size + token, -d_factor, mask=token < size)


def constants(d_head: int) -> dict[str, int]:
    """Tile sizes and launch options of both kernels."""
    features = max(16, triton.next_power_of_2(d_head))
    return {"BLOCK_T": MOST_TOKENS, "BLOCK_D": features, "num_warps": 4 if features < 64 else 8}


def precision(inputs: torch.dtype, weights: torch.dtype) -> str:
    """Of the products."""
    if weights == torch.float64:
        return "ieee"
    return "tf32" if inputs.itemsize == 2 or tf32_allowed() else "tf32x3"


def _launch(kernel: Any, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...], **flags: Any) -> None:
    """inputs: queries, keys, values, step sizes, and LayerNorm's weight and bias and the position scale."""
    batch, time, heads, d_head = inputs[0].shape
    size = len(inputs[6])
    sizes = (time // size, size, heads, d_head)
    strides = [stride for x in inputs[:4] for stride in x.stride()[:3]]
    flags = {"PRECISION": precision(inputs[0].dtype, others[0].dtype), **flags, **constants(d_head)}
    with torch.cuda.device_of(inputs[0]):  # Triton alone would take the current one
        kernel[(batch * heads,)](*inputs, *others, *sizes, *strides, **flags)


class _MiniBatches(torch.autograd.Function):
    """Outputs `[batch, time, heads, d_head]`, weight `[batch, heads, d_head, d_head]` and bias after them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, values, keep = inputs[0], inputs[2], any(ctx.needs_input_grad)
        outputs = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        gradients = queries.new_empty(queries.shape if keep else 0, dtype=weight.dtype)
        after = torch.empty_like(weight), torch.empty_like(bias)
        _launch(_forward_kernel, inputs, (weight, bias, outputs, gradients, *after), KEEP=keep)
        ctx.save_for_backward(*inputs, *after, gradients)
        return outputs, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        *inputs, weight, bias, gradients = ctx.saved_tensors
        batch, _, heads, d_head = inputs[0].shape
        sequences = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs[:4]]
        norms = [weight.new_empty(batch, heads, d_head) for _ in range(2)]
        scale = weight.new_empty(batch, heads, len(inputs[6]))
        before = torch.empty_like(weight), torch.empty_like(bias)
        given = tuple(x.contiguous() for x in given)
        others = (weight, bias, gradients, *given, *sequences, *norms, scale, *before)
        _launch(_backward_kernel, tuple(inputs), others)
        return *before, *sequences, *(x.sum(0) for x in norms), scale.sum((0, 1))


def _mini_batches(inputs: chunked.Inputs, norm: chunked.Norm, scale: Tensor, weights: Layers) -> tuple[Tensor, Layers]:
    ((weight, bias),) = weights
    q, k, v, step_sizes = inputs
    sequences = (*(x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)), step_sizes)
    flat = (x.contiguous() for x in (weight, bias))
    output, *after = _MiniBatches.apply(*flat, *sequences, *(x.contiguous() for x in (*norm, scale)))
    return output, (tuple(after),)


ttt = functools.partial(chunked.ttt, whole=_mini_batches)
