"""Solving (H + R) x = q for many tokens at once, H being known only by what it makes of a vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, autocast

Product = Callable[[Tensor], Tensor]
"""`[..., d]` -> `[..., d]`: H + R of each token times its vector, or an affine map made of it."""

NORM_FLOOR = 1e-12  # added to ||H||_F^2: where all keys are zero, the steps stay finite


@torch.no_grad()
def conjugate_gradient(product: Product, q: Tensor, steps: int) -> Tensor:
    """The conjugate gradient method from zero on, at most `steps` steps."""
    tiny = torch.finfo(q.dtype).tiny
    x, r = torch.zeros_like(q), q.clone()
    p, energy = r, r.square().sum(-1, keepdim=True)
    done = energy * torch.finfo(q.dtype).eps ** 2
    for _ in range(steps):
        product_p = product(p)
        length = energy / (p * product_p).sum(-1, keepdim=True).clamp_min(tiny)
        x = x + length * p
        r = r - length * product_p
        before, energy = energy, r.square().sum(-1, keepdim=True)
        # asking costs nothing on a CPU only, and a compiled graph cannot stop early
        if q.device.type == "cpu" and not torch.compiler.is_compiling() and bool((energy <= done).all()):
            break
        p = r + energy / before.clamp_min(tiny) * p
    return x


def chebyshev_rates(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """For a spectrum in `lower..upper`: the length of a step, and a quarter of the squared rate of convergence."""
    return 2 / (upper + lower), ((upper - lower) / (upper + lower)).square() / 4


def chebyshev(descend: Product, first: Tensor, quarter_rate: Tensor, steps: int) -> Tensor:
    """`steps` of the Chebyshev iteration from `first`, which is one step of `chebyshev_rates` times q, on.

    descend: x -> x + step * (q - (H + R) x). quarter_rate `[..., 1]`. Plain operations: gradients go through them.
    """
    before, x = torch.zeros_like(first), first
    omega = torch.full_like(quarter_rate, 2.0)
    for _ in range(steps):
        omega = 1 / (1 - quarter_rate * omega)
        before, x = x, torch.addcmul(before, omega, descend(x) - before)
    return x


class ExactGradient(torch.autograd.Function):
    """Zero, shaped as `(H + R) x - q` of a solution x that was found without recording gradients.

    Added to x, it gives x the gradients of the exact solution, since dx = (H + R)^-1 (dq - d(H + R) x): the gradient
    passed back is solved for by the same method.
    """

    @staticmethod
    def forward(ctx, residual: Tensor, steps: int, product: Product) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.steps, ctx.product = steps, product
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def,override]
        with autocast(gradient.device.type, enabled=False):  # whoever calls backward may have it on
            return -conjugate_gradient(ctx.product, gradient, ctx.steps), None, None
