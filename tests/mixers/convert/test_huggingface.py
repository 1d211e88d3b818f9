"""Layers of transformers, which all run on a CPU, converted: the same output and gradients."""

import inspect

import pytest
import torch
from mixerzoo.mixers import from_huggingface
from torch import nn

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def stirred(layer):
    """Away from where it starts, at which norms and biases do nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


def compare(oracle, source, layer, call):
    """The converted layer, and whether it agrees with `call`, which runs `layer`."""
    mixer = from_huggingface(layer)
    assert not mixer.training
    torch.manual_seed(2)
    x = torch.randn(2, 37, mixer.d_model)
    y, expected = mixer(x)[0], call(x)
    oracle(mixer.card.name, f"transformers {source}", y, expected, limit=2e-6)
    y.square().mean().backward()
    assert all(p.grad is not None for p in mixer.parameters())
    assert all(p.grad is None for p in layer.parameters())  # copies
    return mixer


def attention(layer, rotary):
    """Call an attention layer of transformers as its model would, with a mask of its window."""
    window = layer.config.sliding_window if hasattr(layer.config, "sliding_window") else None

    def call(x):
        places = torch.arange(x.shape[1])
        distance = places[:, None] - places
        seen = (distance >= 0) & (distance < (window or len(places)))
        return layer(x, position_embeddings=rotary(x, places[None]), attention_mask=seen[None, None])[0]

    return call


def test_llama(oracle):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = LlamaConfig(**SIZES, rope_theta=5000.0, attn_implementation="sdpa")
    layer = stirred(LlamaAttention(config, 0))
    mixer = compare(oracle, "LlamaAttention", layer, attention(layer, LlamaRotaryEmbedding(config)))
    assert mixer.card.name == "softmax_attention" and (mixer.heads, mixer.kv_heads, mixer.d_head) == (4, 2, 16)


@pytest.mark.parametrize("window", [None, 9])
def test_mistral(oracle, window):
    from transformers import MistralConfig
    from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

    config = MistralConfig(**SIZES, sliding_window=window, attn_implementation="sdpa")
    layer = stirred(MistralAttention(config, 0))
    mixer = compare(oracle, "MistralAttention", layer, attention(layer, MistralRotaryEmbedding(config)))
    assert mixer.card.name == ("softmax_attention" if window is None else "sliding_window_attention")


def test_qwen3(oracle):
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

    config = Qwen3Config(**SIZES, rms_norm_eps=1e-3, attn_implementation="sdpa")  # an epsilon that can be seen
    layer = stirred(Qwen3Attention(config, 0))
    compare(oracle, "Qwen3Attention", layer, attention(layer, Qwen3RotaryEmbedding(config)))


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_qwen3_next_attention(oracle, fraction):
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": fraction}
    config = Qwen3NextConfig(**SIZES, rms_norm_eps=1e-3, rope_parameters=rope, attn_implementation="sdpa")
    layer = stirred(Qwen3NextAttention(config, 0))
    mixer = compare(oracle, "Qwen3NextAttention", layer, attention(layer, Qwen3NextRotaryEmbedding(config)))
    assert mixer.rotary_fraction == fraction


def test_mamba(oracle):
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    layer = stirred(MambaMixer(MambaConfig(hidden_size=32, state_size=6, time_step_rank=3, conv_kernel=3), 0))
    mixer = compare(oracle, "MambaMixer", layer, layer)
    assert (mixer.d_state, mixer.dt_rank, mixer.conv_size) == (6, 3, 3)


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(oracle, groups):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=24, n_groups=groups, chunk_size=8, layer_norm_epsilon=1e-3
    )
    layer = stirred(Mamba2Mixer(config, 0))
    compare(oracle, "Mamba2Mixer", layer, layer)


@pytest.mark.parametrize("value_heads", [2, 4])
def test_qwen3_next_gated_delta_net(oracle, monkeypatch, value_heads):
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next import modeling_qwen3_next
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    rule = "torch_chunk_gated_delta_rule"  # under which transformers calls fla's kernel where fla is installed
    monkeypatch.setattr(modeling_qwen3_next, rule, inspect.unwrap(getattr(modeling_qwen3_next, rule)))
    config = Qwen3NextConfig(
        hidden_size=32,
        linear_num_key_heads=2,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        rms_norm_eps=1e-3,
        num_hidden_layers=4,
    )
    layer = stirred(Qwen3NextGatedDeltaNet(config, 0))
    compare(oracle, "Qwen3NextGatedDeltaNet", layer, layer)


def test_dtype_and_weights_are_the_layers():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    layer = LlamaAttention(LlamaConfig(**SIZES), 0).to(torch.bfloat16).train()
    mixer = from_huggingface(layer)
    assert mixer.training and {p.dtype for p in mixer.parameters()} == {torch.bfloat16}
    assert torch.equal(mixer.o_proj.weight, layer.o_proj.weight)
    with torch.no_grad():
        mixer.o_proj.weight.zero_()
    assert layer.o_proj.weight.any()


def test_what_has_no_counterpart_is_refused_by_name():
    from transformers import LlamaConfig, Mamba2Config
    from transformers.models.llama.modeling_llama import LlamaAttention
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    with pytest.raises(ValueError, match="Linear is no layer of transformers that can be converted; known are Llama"):
        from_huggingface(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="LlamaAttention with a bias in q_proj"):
        from_huggingface(LlamaAttention(LlamaConfig(**SIZES, attention_bias=True), 0))
    with pytest.raises(ValueError, match=r"with attention_dropout=0\.1 has no counterpart"):
        from_huggingface(LlamaAttention(LlamaConfig(**SIZES, attention_dropout=0.1), 0))
    scaled = LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ValueError, match="with rope_type='linear' has no counterpart"):
        from_huggingface(LlamaAttention(scaled, 0))
    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "n_groups": 1}
    for option, value in (("use_conv_bias", False), ("time_step_limit", (0.0, 0.5))):
        with pytest.raises(ValueError, match=rf"Mamba2Mixer with {option}="):
            from_huggingface(Mamba2Mixer(Mamba2Config(**sizes, **{option: value}), 0))
