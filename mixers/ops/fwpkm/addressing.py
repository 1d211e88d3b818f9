"""Addresses and the gradient of the keys' objective, both differentiable.

A token looks at the best sub-keys of each codebook and at no others. Gradients therefore are weighted sums of few rows,
for which `Kernels` has functions; no product with a whole codebook is taken but for the scores themselves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..product_keys import Score, slots_of
from .primitives import Accesses, Kernels
from .problem import FwpkmOptions


class Codes:
    """Which sub-keys of all codebooks all half tokens access, sorted when that is first asked for.

    index `[memories, heads, 2, n, top_k]`: places in codebooks of `n_subkeys`. like: of others, perhaps as many.
    """

    def __init__(self, index: Tensor, n_subkeys: int, like: Codes | None) -> None:
        self.index, self.n_subkeys, self.like = index, n_subkeys, like

    @functools.cached_property
    def accesses(self) -> Accesses:
        like, self.like = self.like, None  # or a call's last codes would keep all of its others alive
        sizes = self.index.shape[:3]
        n_codes = sizes.numel() * self.n_subkeys
        books = torch.arange(0, n_codes, self.n_subkeys, device=self.index.device).view(*sizes, 1, 1)
        return Accesses.to((books + self.index).flatten(0, -2), n_codes, None if like is None else like.accesses)


@dataclass(frozen=True)
class Addresses:
    """Of `n` tokens: the best `top_k` sub-scores of each half, and the best of their sums.

    halves `[memories, heads, 2, n, d_k/2]`; scores, index `[memories, heads, 2, n, top_k]`: the sub-scores and where in
    the codebook they are; codes: the same places as accesses;
    total, pairs `[memories, heads, n, top_k]`: the sums, and their places among the `top_k * top_k` (first half major);
    slots and weights `[memories, n, heads * top_k]`.
    """

    halves: Tensor
    scores: Tensor
    codes: Codes
    total: Tensor
    pairs: Tensor
    slots: Tensor
    weights: Tensor


def address(
    halves: Tensor, keys: Tensor, options: FwpkmOptions, kernels: Kernels, like: Addresses | None = None
) -> Addresses:
    """Address `halves [memories, heads, 2, n, d_k/2]` with `keys [memories, heads, 2, n_subkeys, d_k/2]`.

    like: those of other tokens, perhaps as many.
    """
    k, n_subkeys = options.top_k, keys.shape[3]
    codes_like = None if like is None else like.codes
    scores, index, total, pairs, codes = _Scores.apply(halves, keys, k, options.score, kernels, codes_like)
    slots = slots_of(index[:, :, 0], index[:, :, 1], pairs, n_subkeys)
    weights = weigh(by_token(total, options), options)
    return Addresses(halves, scores, codes, total, pairs, slots.transpose(1, 2).flatten(2), weights)


def by_token(total: Tensor, options: FwpkmOptions) -> Tensor:
    """Scores over the temperature, `[memories, n, heads * top_k]`."""
    total = total if options.temperature == 1 else total / options.temperature
    return total.transpose(1, 2).flatten(2)


def weigh(total: Tensor, options: FwpkmOptions) -> Tensor:
    """Weights of scores over the temperature."""
    if options.nonlinearity == "softmax":
        return total.softmax(-1)
    return F.silu(total) if options.nonlinearity == "silu" else total.relu()


def _weigh_backward(slope: Tensor, found: Addresses, options: FwpkmOptions) -> Tensor:
    """Carry a gradient with respect to the weights on to the scores over the temperature; differentiable."""
    if options.nonlinearity == "softmax":
        return found.weights * (slope - (found.weights * slope).sum(-1, keepdim=True))
    if options.nonlinearity == "relu":
        return slope * (found.weights > 0)
    total = by_token(found.total, options)
    sigmoid = total.sigmoid()
    return slope * sigmoid * (1 + total * (1 - sigmoid))


class _Scores(torch.autograd.Function):
    """`Kernels.address` with its gradient, and the accesses to sub-keys that it found."""

    @staticmethod
    def forward(
        ctx: Any,
        halves: Tensor,
        keys: Tensor,
        top_k: int,
        score: Score,
        kernels: Kernels,
        codes_like: Codes | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Codes]:
        best, index, total, pairs = kernels.address(halves, keys, top_k, score)
        codes = Codes(index, keys.shape[3], codes_like)
        ctx.save_for_backward(halves, keys, best, pairs)
        ctx.codes, ctx.score, ctx.kernels = codes, score, kernels
        ctx.mark_non_differentiable(index, pairs)
        ctx.set_materialize_grads(False)
        return best, index, total, pairs, codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_best: Tensor | None, _: Any, d_total: Tensor | None, *__: Any) -> tuple[Any, ...]:
        halves, keys, best, pairs = ctx.saved_tensors
        grad_scores = torch.zeros_like(best) if d_best is None else d_best
        if d_total is not None:
            grad_scores = grad_scores + _onto_halves(d_total, pairs)
        if ctx.score == "idw":
            grad_scores = _per_distance(grad_scores, best)
        d_halves = ctx.kernels.read(keys.flatten(0, 3), ctx.codes.accesses, grad_scores).view(halves.shape)
        if ctx.score == "idw":
            d_halves.addcmul_(grad_scores.sum(-1, keepdim=True), halves, value=-1)
        return (
            d_halves,
            _grad_keys(grad_scores, halves, keys, ctx.codes.accesses, ctx.score, ctx.kernels)[0],
            None,
            None,
            None,
            None,
        )


def _onto_halves(d_total: Tensor, pairs: Tensor) -> Tensor:
    """Carry a gradient with respect to the sums on to the sub-scores; several sums may share one."""
    k = pairs.shape[-1]
    places = torch.stack([pairs // k, pairs % k], dim=2)
    chosen = places[..., None] == torch.arange(k, device=pairs.device)  # scatter_add would not repeat itself on a GPU
    return (chosen * d_total[:, :, None, :, :, None]).sum(-2)


def _per_distance(grad_scores: Tensor, scores: Tensor) -> Tensor:
    """IDW: d score / d query = -2 (query - key) / (1e-3 + ||query - key||^2), and the score has that distance."""
    return 2 * grad_scores * scores.exp()


def _grad_keys(
    grad_scores: Tensor, halves: Tensor, keys: Tensor, codes: Accesses, score: Score, kernels: Kernels
) -> tuple[Tensor, Tensor | None]:
    """The sum over the accesses of each sub-key of `grad_scores * (query - key)`, for `dot` of `grad_scores * query`.

    Also, for `idw`, the sums of grad_scores alone, `[sub-keys, 1]`.
    """
    weights = codes.sort(grad_scores)
    grad_keys = kernels.spread(codes, halves.reshape(-1, halves.shape[-1]), weights)
    total = None
    if score == "idw":
        total = _sums(codes, weights, kernels)
        grad_keys.addcmul_(total, keys.flatten(0, 3), value=-1)
    return grad_keys.view(keys.shape), total


def _sums(codes: Accesses, sorted_weights: Tensor, kernels: Kernels) -> Tensor:
    """The sum of the accesses' weights for each sub-key, `[sub-keys, 1]`."""
    return kernels.spread(codes, sorted_weights.new_ones((len(codes.ids), 1)), sorted_weights)


# ---------------------------------------------------------------------------------------------------------------------
# The gradient of the keys' objective: first with respect to the sub-scores, then to the keys


def entropy_gradient(found: Addresses, counted: Tensor, tokens: int, weight: float, kernels: Kernels) -> Tensor:
    """The gradient of `-weight * (H(P1) + H(P2))` over the `tokens` of a mask `[n]` with respect to the sub-scores."""
    count = max(1, tokens) * found.scores.shape[1]
    return _EntropyGradient.apply(found.scores, counted, count, weight, found.codes.accesses, kernels)


class _EntropyGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, counted: Tensor, count: int, weight: float, codes: Accesses, kernels: Kernels
    ) -> Tensor:
        share = scores.softmax(-1) * counted[:, None]
        use = (_EntropyGradient._by_codebook(codes, share, kernels) / count).add_(1e-8)
        # of d(p log(use)) / dp without its constant, which cancels where shares sum to 1
        slope = _EntropyGradient._by_access(use.log().sub_(use.reciprocal(), alpha=1e-8), codes, share)
        ctx.save_for_backward(share, use, slope)
        ctx.count, ctx.weight, ctx.codes, ctx.kernels = count, weight, codes, kernels
        return _softmax_backward(slope, share).mul_(weight / count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_grad_scores: Tensor) -> tuple[Any, ...]:
        share, use, slope = ctx.saved_tensors
        d_grad_scores = d_grad_scores * (ctx.weight / ctx.count)
        mean = (d_grad_scores * share).sum(-1, keepdim=True)
        centred = slope - (share * slope).sum(-1, keepdim=True)
        d_slope = _softmax_backward(d_grad_scores, share)
        per_use = use.reciprocal()
        d_use = _EntropyGradient._by_codebook(ctx.codes, d_slope, ctx.kernels)
        d_use = d_use.mul_(per_use.addcmul(per_use, per_use, value=1e-8)).div_(ctx.count)
        d_share = _EntropyGradient._by_access(d_use, ctx.codes, share)
        d_share = d_share.addcmul_(d_grad_scores, centred).addcmul_(slope, mean, value=-1)
        return _softmax_backward(d_share, share), None, None, None, None, None

    @staticmethod
    def _by_codebook(codes: Accesses, weights: Tensor, kernels: Kernels) -> Tensor:
        """Sums `[memories, 1, 2, n_subkeys]` over the accesses by all heads."""
        sums = _sums(codes, codes.sort(weights), kernels).view(*weights.shape[:3], -1)
        return sums.sum(1, keepdim=True) if sums.shape[1] > 1 else sums

    @staticmethod
    def _by_access(values: Tensor, codes: Accesses, like: Tensor) -> Tensor:
        """What each access finds in `values [memories, 1, 2, n_subkeys]`."""
        return values.expand(-1, like.shape[1], -1, -1).reshape(-1)[codes.ids].view(like.shape)


def _softmax_backward(d_share: Tensor, share: Tensor) -> Tensor:
    """`share * (d_share - sum(share * d_share))`, also where a share is zero throughout."""
    return torch.ops.aten._softmax_backward_data(d_share, share, -1, share.dtype)


def recall_gradient(found: Addresses, slope: Tensor, options: FwpkmOptions) -> Tensor:
    """The gradient of the mean memory loss with respect to the sub-scores; differentiable.

    slope `[memories, n, heads * top_k]`: that with respect to the weights, a constant.
    """
    heads, k = found.scores.shape[1], options.top_k
    slope = _weigh_backward(slope, found, options) / options.temperature
    return _onto_halves(slope.unflatten(-1, (heads, k)).transpose(1, 2), found.pairs)


def key_gradient(grad_scores: Tensor, found: Addresses, keys: Tensor, score: Score, kernels: Kernels) -> Tensor:
    """Carry a gradient with respect to the sub-scores on to the keys; differentiable."""
    if score == "idw":
        grad_scores = _per_distance(grad_scores, found.scores)
    return _KeyGradient.apply(grad_scores, found.halves, keys, found.codes.accesses, score, kernels)


class _KeyGradient(torch.autograd.Function):
    """`_grad_keys` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, grad_scores: Tensor, halves: Tensor, keys: Tensor, codes: Accesses, score: Score, kernels: Kernels
    ) -> Tensor:
        gradient, total = _grad_keys(grad_scores, halves, keys, codes, score, kernels)
        ctx.save_for_backward(grad_scores, halves, keys, total)
        ctx.codes, ctx.kernels = codes, kernels
        return gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_gradient: Tensor) -> tuple[Any, ...]:
        grad_scores, halves, keys, total = ctx.saved_tensors
        codes, rows = ctx.codes, d_gradient.flatten(0, 3).contiguous()
        d_grad_scores = ctx.kernels.gather_dot(rows, codes, halves.reshape(len(codes.ids), -1))
        d_halves = ctx.kernels.read(rows, codes, grad_scores).view(halves.shape)
        d_keys = None
        if total is not None:
            d_grad_scores = d_grad_scores - (rows * keys.flatten(0, 3)).sum(-1)[codes.ids]
            d_keys = (-total * rows).view(keys.shape)
        return d_grad_scores.view(grad_scores.shape), d_halves, d_keys, None, None, None
