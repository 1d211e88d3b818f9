"""Layers of flash-linear-attention converted.

Their kernels need a GPU: here fla's own plain functions (`naive_*`, `*_ref`) take the kernels' places, or where fla has
none a few lines of torch, so that the layer around them is fla's.
"""

import importlib

import pytest
import torch
from mixerzoo.mixers import from_fla
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def plain(monkeypatch):
    """`plain(module, name=function, ...)` replaces functions in a module of `fla.layers`; norms are done already."""
    from fla.modules import FusedRMSNormGated, GroupNorm, RMSNorm, RotaryEmbedding
    from fla.modules.norm.layernorm import group_norm_ref, rms_norm_ref
    from fla.modules.rotary import ops as rotary

    def rms_norm(self, x):
        return rms_norm_ref(x, self.weight, self.bias, eps=self.eps)

    def gated_norm(self, x, g):
        gate = g.sigmoid() if self.activation == "sigmoid" else F.silu(g)
        return rms_norm_ref(x, self.weight, self.bias, eps=self.eps) * gate

    def group_norm(self, x):
        return group_norm_ref(x, self.weight, self.bias, self.num_groups, eps=self.eps)

    def rotate(x, cos, sin, interleaved=False, **rest):
        return rotary.rotary_embedding_ref(x, cos[: x.shape[1]], sin[: x.shape[1]], interleaved)

    monkeypatch.setattr(RMSNorm, "forward", rms_norm)
    monkeypatch.setattr(FusedRMSNormGated, "forward", gated_norm)
    monkeypatch.setattr(GroupNorm, "forward", group_norm)
    monkeypatch.setattr(rotary, "rotary_embedding", rotate)
    assert RotaryEmbedding.forward.__module__ == rotary.__name__

    def replace(module, **functions):
        found = importlib.import_module(f"fla.layers.{module}")
        for name, function in functions.items():
            monkeypatch.setattr(found, name, function)

    return replace


def stirred(layer):
    """Away from where it starts, at which norms do nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


def compare(oracle, layer, limit=2e-6):
    mixer = from_fla(layer)
    assert not mixer.training
    torch.manual_seed(2)
    x = torch.randn(2, 37, mixer.d_model)
    source = f"fla-core {type(layer).__name__} on its naive functions"
    oracle(mixer.card.name, source, mixer(x)[0], layer(x)[0], limit=limit)
    return mixer


def naive_attention(q, k, v, causal, window_size):
    time, groups = q.shape[1], q.shape[2] // k.shape[2]
    distance = torch.arange(time)[:, None] - torch.arange(time)
    seen = (distance >= 0) & (distance <= (time if window_size[0] < 0 else window_size[0]))
    k, v = (x.repeat_interleave(groups, 2).transpose(1, 2) for x in (k, v))
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen).transpose(1, 2)


@pytest.mark.parametrize("options", [{}, {"window_size": 9, "num_kv_heads": 2, "qk_norm": True, "rope_theta": 500.0}])
def test_attention(oracle, plain, options):
    from fla.layers import Attention

    plain("attn", flash_attn_func=naive_attention)
    mixer = compare(oracle, stirred(Attention(hidden_size=32, num_heads=4, **options)))
    assert mixer.card.name == ("sliding_window_attention" if options else "softmax_attention")


@pytest.mark.parametrize(
    "options",
    [
        {"feature_map": "elu", "do_feature_map_norm": True, "output_norm": "identity"},
        {"feature_map": "identity", "norm_eps": 1e-3},
        {"feature_map": "elu", "norm_eps": 1e-2},
    ],
)
def test_linear_attention(oracle, plain, options):
    from fla.layers import LinearAttention
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn

    plain("linear_attn", chunk_linear_attn=lambda cu_seqlens, **inputs: naive_recurrent_linear_attn(**inputs))
    compare(oracle, stirred(LinearAttention(hidden_size=32, num_heads=2, **options)))


@pytest.mark.parametrize("options", [{}, {"expand_v": 1.0, "fuse_norm": False, "norm_eps": 1e-3}])
def test_retention(oracle, plain, options):
    from fla.layers import MultiScaleRetention
    from fla.ops.retention.naive import naive_retention

    def retention(q, k, v, **rest):
        return naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), None

    plain("multiscale_retention", chunk_retention=retention)
    layer = stirred(MultiScaleRetention(hidden_size=32, num_heads=2, **options))
    if not layer.fuse_norm_and_gate:
        layer.gate_fn = nn.SiLU()  # a kernel
    compare(oracle, layer)


def gla(q, k, v, gk, **rest):
    from fla.ops.gla.naive import naive_recurrent_gla

    return naive_recurrent_gla(q, k, v, gk)


def test_gla(oracle, plain):
    from fla.layers import GatedLinearAttention

    plain("gla", fused_recurrent_gla=gla)
    compare(oracle, stirred(GatedLinearAttention(hidden_size=32, num_heads=2, gate_logit_normalizer=4)))


def test_hgrn2(oracle, plain):
    from fla.layers import HGRN2Attention
    from fla.modules.norm.layernorm import rms_norm_ref

    def norm_and_project(x, norm_weight, norm_bias, weight, bias):
        return F.linear(rms_norm_ref(x, norm_weight, norm_bias), weight, bias)

    plain("hgrn2", fused_recurrent_gla=gla, swish=F.silu, rms_norm_linear=norm_and_project)
    compare(oracle, stirred(HGRN2Attention(hidden_size=32, expand_ratio=16, layer_idx=0)))


@pytest.mark.parametrize(
    "options", [{"expand_v": 1}, {"expand_v": 2, "num_v_heads": 4, "norm_eps": 1e-3}, {"use_gate": False}]
)
def test_gated_deltanet(oracle, plain, options):
    from fla.layers import GatedDeltaNet
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    def convolution(x, weight, bias, activation, backend):
        assert activation in ("silu", "swish")
        y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=weight.shape[1] - 1, groups=len(weight))
        return F.silu(y[..., : x.shape[1]].transpose(1, 2)), None

    def rule(q, k, v, g, beta, A_log, dt_bias, **rest):
        groups = v.shape[2] // q.shape[2]
        q, k = (F.normalize(x, dim=-1).repeat_interleave(groups, 2) for x in (q, k))
        g = -A_log.exp() * F.softplus(g + dt_bias)
        return naive_recurrent_gated_delta_rule(q, k, v, beta.sigmoid(), g)

    plain("gated_deltanet", causal_conv1d=convolution, chunk_gated_delta_rule=rule)
    # unit length has another epsilon in fla
    compare(oracle, stirred(GatedDeltaNet(hidden_size=32, head_dim=16, num_heads=2, **options)), limit=1e-5)


def test_rwkv6(oracle, plain):
    from fla.layers import RWKV6Attention
    from fla.modules.token_shift import token_shift_ref
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

    def rwkv6(r, k, v, w, u, scale, **rest):
        o, _ = naive_recurrent_rwkv6(*(x.transpose(1, 2) for x in (r, k, v, w)), u, scale=scale)
        return o.transpose(1, 2), None

    plain("rwkv6", token_shift=token_shift_ref, fused_recurrent_rwkv6=rwkv6)
    layer = RWKV6Attention(hidden_size=32, num_heads=2, expand_k=1.0, proj_low_rank_dim=5, gate_low_rank_dim=6)
    layer.gate_fn = nn.SiLU()  # a kernel
    compare(oracle, stirred(layer))


def test_rwkv7(oracle, plain):
    from fla.layers import RWKV7Attention
    from fla.modules.token_shift import token_shift_ref
    from fla.ops.rwkv7.fused_k_update import k_update_ref
    from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref

    def rwkv7(r, w, k, v, a, b, scale, **rest):
        """S_t = S_{t-1} (diag(exp w_t) + a_t b_t^T) + v_t k_t^T, as in the paper; fla has no plain function of it."""
        state, outputs = r.new_zeros(*r.shape[:1], *r.shape[2:], v.shape[-1]), []
        for t in range(r.shape[1]):
            erased = torch.einsum("bhkv,bhk->bhv", state, a[:, t])
            state = w[:, t].exp()[..., None] * state + b[:, t][..., None] * erased[:, :, None]
            state = state + k[:, t][..., None] * v[:, t][:, :, None]
            outputs.append(torch.einsum("bhkv,bhk->bhv", state, scale * r[:, t]))
        return torch.stack(outputs, 1), None

    plain(
        "rwkv7",
        token_shift=lambda x, cu_seqlens, **rest: (token_shift_ref(x), None),
        fused_addcmul_rwkv7=lambda x, delta, *shares: tuple(torch.addcmul(x, delta, share) for share in shares),
        fused_k_rwkv7=k_update_ref,
        gate_output_correction=gate_output_correction_ref,
        chunk_rwkv7=rwkv7,
    )
    compare(oracle, stirred(RWKV7Attention(hidden_size=32, head_dim=16, layer_idx=0, num_hidden_layers=3)))


def test_mamba(oracle):
    from fla.layers import Mamba

    layer = stirred(Mamba(hidden_size=32, intermediate_size=64, state_size=6, dt_rank=3, conv_kernel=3))
    layer.act = nn.SiLU()  # a kernel
    mixer, x = from_fla(layer), torch.randn(2, 37, 32)
    oracle("mamba", "fla-core Mamba.slow_forward", mixer(x)[0], layer.slow_forward(x)[0], limit=2e-6)


@pytest.mark.parametrize("options", [{}, {"n_groups": 2, "norm_eps": 1e-3}])
def test_mamba2(oracle, options):
    """fla's layer has no way round its kernels: its weights go into the layer of transformers, which has its names."""
    from fla.layers import Mamba2
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    layer = stirred(Mamba2(hidden_size=32, head_dim=16, state_size=24, **options))
    groups, eps = layer.n_groups, layer.norm_eps
    config = Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=24, n_groups=groups, layer_norm_epsilon=eps, chunk_size=8
    )
    theirs = Mamba2Mixer(config, 0).eval()
    theirs.load_state_dict(layer.state_dict())
    mixer = from_fla(layer)
    x = torch.randn(2, 37, 32)
    oracle("mamba2", "fla-core Mamba2's weights in transformers Mamba2Mixer", mixer(x)[0], theirs(x), limit=2e-6)


def test_mamba3_has_the_weights_of_the_layer():
    """What it computes is compared in tests/mixers/state_space/test_mamba3.py, with the same names."""
    from fla.layers import Mamba3

    layer = stirred(Mamba3(hidden_size=32, head_dim=16, state_size=12, rope_fraction=1.0, norm_eps=1e-3))
    mixer = from_fla(layer)
    assert (mixer.d_head, mixer.d_state, mixer.rope_fraction, mixer.B_norm.eps) == (16, 12, 1.0, 1e-3)
    for name, parameter in layer.named_parameters():
        assert torch.equal(mixer.get_parameter(name.replace("out_proj", "o_proj")), parameter)


def test_what_has_no_counterpart_is_refused_by_name(plain):
    from fla import layers

    def refused(layer, message):
        with pytest.raises(ValueError, match=message):
            from_fla(layer)

    plain("attn", flash_attn_func=naive_attention)
    sizes = {"hidden_size": 32, "num_heads": 4}
    refused(nn.Linear(2, 2), "Linear is no layer of flash-linear-attention that can be converted; known are Attention")
    refused(layers.Attention(**sizes, qkv_bias=True), "Attention with a bias in q_proj")
    refused(layers.LinearAttention(**sizes, feature_map="relu"), r"with the feature map ReLU\(\) has no counterpart")
    refused(layers.LinearAttention(**sizes, feature_map="elu", do_feature_map_norm=True), "do_feature_map_norm=True")
    refused(layers.MultiScaleRetention(**sizes, num_kv_heads=2), "with num_kv_groups=2")
    refused(layers.GatedLinearAttention(**sizes, clamp_min=-3.0), r"with clamp_min=-3\.0")
    refused(layers.GatedLinearAttention(**sizes, elementwise_affine=False), "with elementwise_affine=False")
    refused(layers.GatedLinearAttention(**sizes, gate_fn="gelu"), "with gate_fn=")
    refused(layers.HGRN2Attention(hidden_size=32, expand_ratio=8, layer_idx=1), "with layer_idx=1 takes part of its")
    refused(layers.GatedDeltaNet(**sizes, head_dim=8, allow_neg_eigval=True), "with allow_neg_eigval=True")
    refused(layers.GatedDeltaNet(**sizes, head_dim=8, output_gate_activation="sigmoid"), "activation='sigmoid'")
    refused(layers.Mamba(hidden_size=32, intermediate_size=48), "intermediate_size=48, no multiple of 32")
    refused(layers.Mamba2(hidden_size=32, head_dim=16, norm_before_gate=True), "with norm_before_gate=True")
    refused(layers.Mamba3(hidden_size=32, head_dim=16, is_mimo=True), "with is_mimo=True")
    refused(layers.RWKV6Attention(**sizes), "with head_k_dim=4")
    refused(layers.RWKV7Attention(hidden_size=32, head_dim=8, layer_idx=1, num_hidden_layers=3), "layer_idx=1")
