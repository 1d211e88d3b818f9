"""Based and ReBased against the naive functions of fla, and their feature maps against the definition."""

from __future__ import annotations

from typing import Any

import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.layers import split_heads
from mixerzoo.mixers.linear.based import quadratic_features


def heads_first(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2)


def test_products_of_quadratic_features_are_half_the_square() -> None:
    q, k = torch.randn(2, 5, 7, dtype=torch.float64)
    products = (quadratic_features(q) * quadratic_features(k)).sum(-1)
    assert quadratic_features(q).shape == (5, 28)
    torch.testing.assert_close(products, (q * k).sum(-1).square() / 2)


def test_based_is_fla_s_parallel_form(oracle: Any) -> None:
    from fla.ops.based.naive import naive_parallel_based

    torch.manual_seed(0)
    mixer: Any = create_mixer("based", 32, heads=2, chunk_size=16).double()
    x = torch.randn(2, 50, 32, dtype=torch.float64)
    q, k, v = (split_heads(part, 2) for part in mixer.qkv_proj(x).split(mixer.sizes, dim=-1))
    read = heads_first(naive_parallel_based(*map(heads_first, (q, k, v))))
    # its normaliser has 1e-6 beside weights of 1/2 and more
    oracle("based", "fla-core naive_parallel_based", mixer(x)[0], mixer.o_proj(read.flatten(2)), limit=1e-5)


def test_rebased_is_fla_s_parallel_form(oracle: Any) -> None:
    from fla.ops.rebased.naive import naive_parallel_rebased

    torch.manual_seed(0)
    mixer: Any = create_mixer("rebased", 32, heads=2, chunk_size=16).double()
    torch.nn.init.normal_(mixer.q_norm.bias)  # as far from 0 as trained ones, so that no sum of weights is tiny
    torch.nn.init.normal_(mixer.k_norm.weight)
    x = torch.randn(2, 50, 32, dtype=torch.float64)
    q, k, v = mixer.qkv_proj(x).split(mixer.sizes, dim=-1)
    q, k, v = (split_heads(part, 2) for part in (mixer.q_norm(q), mixer.k_norm(k), v))
    # its normaliser has 1e-6 added, which matters where a weight is small: so divide here
    sums = naive_parallel_rebased(*map(heads_first, (q, k, torch.ones_like(v))), use_norm=False)
    read = heads_first(naive_parallel_rebased(*map(heads_first, (q, k, v)), use_norm=False) / sums)
    oracle("rebased", "fla-core naive_parallel_rebased", mixer(x)[0], mixer.o_proj(read.flatten(2)), limit=1e-6)


def test_rebased_gives_the_weight_0_to_orthogonal_keys() -> None:
    mixer: Any = create_mixer("rebased", 32, heads=2, d_feature=4).double()
    q, k = torch.zeros(2, 1, 1, 8, dtype=torch.float64)
    q[..., 0], k[..., 1] = 3.0, 5.0
    assert (mixer.features(q) * mixer.features(k)).sum() == 0
