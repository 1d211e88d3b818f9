"""Mamba-3 against the paper's recurrence in complex numbers, and against fla's layer around that recurrence.

The released kernels need a recent GPU, so that nobody's whole layer runs here. fla's does once its two kernels and its
norm are replaced by the functions below, and then says whether projections, biases and gates are as published.
"""

import math

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch.nn import functional as F


def recurrence(q, k, v, log_decay, dt, trapezoid, angle):
    """The paper's exponential-trapezoidal recurrence, token by token, of a complex state.

    q, k `[batch, time, heads, rank, d_state]`, v `[batch, time, heads, rank, d_head]`, the others
    `[batch, time, heads(, angles)]`; returns `[batch, time, heads, rank, d_head]`. Neighbouring channels of q and k are
    real and imaginary part; those without an angle do not turn.
    """
    q, k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (q, k))
    angle = F.pad(angle, (0, k.shape[-1] - angle.shape[-1]))
    alpha = torch.exp(torch.complex(log_decay[..., None].expand_as(angle), -dt[..., None] * angle))[..., None]
    weight = trapezoid.sigmoid()
    state, before, outputs = 0.0, 0.0, []
    for t in range(k.shape[1]):
        write = torch.einsum("bhrn,bhrp->bhnp", k[:, t], v[:, t].to(k.dtype))
        late = ((1 - weight[:, t]) * dt[:, t])[..., None, None] * alpha[:, t] * before
        state = alpha[:, t] * state + late + (weight[:, t] * dt[:, t])[..., None, None] * write
        outputs.append(torch.einsum("bhrn,bhnp->bhrp", q[:, t].conj(), state).real)
        before = write
    return torch.stack(outputs, 1)


def turned(angles):
    return math.pi * angles.tanh()


def combined(Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles, D, Z, **rest):
    """What `mamba3_siso_combined` computes: Q, K `[batch, time, groups, d_state]`, ADT `[batch, heads, time]`."""
    repeats = V.shape[2] // Q.shape[2]
    q, k = ((x.repeat_interleave(repeats, 2) + bias)[:, :, :, None] for x, bias in ((Q, Q_bias), (K, K_bias)))
    read = recurrence(q, k, V[:, :, :, None], *(x.transpose(1, 2) for x in (ADT, DT, Trap)), turned(Angles))
    return (read.squeeze(3) + D[:, None] * V) * F.silu(Z)


def combined_mimo(Q, K, V, ADT, DT, Trap, Q_bias, K_bias, MIMO_V, MIMO_Z, MIMO_Out, Angles, D, Z, **rest):
    """What `mamba3_mimo` computes, with pairs of neighbours: Q, K `[batch, time, rank, groups, d_state]`."""
    repeats = V.shape[2] // Q.shape[3]
    q, k = (x.repeat_interleave(repeats, 3).transpose(2, 3) + bias for x, bias in ((Q, Q_bias), (K, K_bias)))
    v = V[:, :, :, None] * MIMO_V
    read = recurrence(q, k, v, *(x.transpose(1, 2) for x in (ADT, DT, Trap)), turned(Angles))
    gated = (read + D[:, None, None] * v) * F.silu(Z[:, :, :, None] * MIMO_Z)
    return (gated * MIMO_Out).sum(3)


@pytest.mark.parametrize(
    ("rank", "options"),
    [(1, {}), (1, {"groups": 2, "rope_fraction": 1.0}), (3, {}), (2, {"groups": 2, "rope_fraction": 1.0})],
)
def test_it_is_the_layer_of_fla_around_the_papers_recurrence(oracle, monkeypatch, rank, options):
    from fla.layers import mamba3

    class PlainNorm(torch.nn.RMSNorm):
        def __init__(self, size, eps, **rest):
            super().__init__(size, eps=eps)

    monkeypatch.setattr(mamba3, "RMSNormGated", PlainNorm)  # Triton
    monkeypatch.setattr(mamba3, "mamba3_siso_combined", combined)
    monkeypatch.setattr(mamba3, "mamba3_mimo_combined", combined_mimo)
    torch.manual_seed(0)
    names = {"groups": "n_groups"}
    theirs = mamba3.Mamba3(
        32,
        state_size=12,
        head_dim=16,
        is_mimo=rank > 1,
        mimo_rank=rank,
        **{names.get(k, k): v for k, v in options.items()},
    )
    ours = create_mixer("mamba3", 32, d_head=16, d_state=12, mimo_rank=rank, chunk_size=8, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    weights = {name.replace("out_proj", "o_proj"): p for name, p in theirs.named_parameters()}
    ours.load_state_dict(weights)
    x = torch.randn(2, 29, 32)
    y, expected = ours(x)[0], theirs.cuda_kernels_forward(x)[0]
    oracle("mamba3", "fla-core Mamba3 around the paper's complex recurrence", y, expected, limit=2e-6)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient)
    for name, parameter in theirs.named_parameters():
        found = ours.get_parameter(name.replace("out_proj", "o_proj")).grad
        oracle("mamba3", "fla-core Mamba3 around the paper's complex recurrence", found, parameter.grad, limit=2e-5)


def test_no_pair_to_turn_is_refused():
    with pytest.raises(ValueError, match=r"rope_fraction = 0\.1 of d_state = 16 is not one pair"):
        create_mixer("mamba3", 32, d_head=16, d_state=16, rope_fraction=0.1)
