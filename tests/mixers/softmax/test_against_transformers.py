"""Whole layers against those of transformers with the same weights: in one call, and token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixerzoo.mixers import Mixer, create_mixer
from torch import Tensor

TIME, WIDTH = 23, 32
COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "attn_implementation": "eager",
}
Weights = dict[str, Tensor]


def layer_of_theirs(module: str, name: str, config: Any, layer: int = 0) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """Their layer, with random weights in float64, and a function that runs it over `x [batch, time, d_model]`."""
    modeling = __import__(f"transformers.models.{module}.modeling_{module}", fromlist=[name])
    torch.manual_seed(0)
    attention = getattr(modeling, f"{name}Attention")(config, layer).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.3)
    rotary = getattr(modeling, f"{name}RotaryEmbedding")(config).double()
    mask = torch.full((TIME, TIME), float("-inf"), dtype=torch.float64).triu(1)[None, None]

    def run(x: Tensor) -> Tensor:
        positions = rotary(x, torch.arange(TIME)[None])
        return attention(x, position_embeddings=positions, attention_mask=mask)[0]

    return attention, run


def compare(oracle: Any, ours: Mixer, theirs: Callable[[Tensor], Tensor], weights: Weights, source: str) -> None:
    ours = ours.double()
    ours.load_state_dict(weights)
    x = torch.randn(2, TIME, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x)
        # their rotary angles are in float32
        oracle(ours.card.name, f"transformers {source}", ours(x)[0], expected, limit=1e-6)
        parts, state = [], None
        for token in x.split(1, dim=1):
            y, state = ours(token, state, return_state=True)
            parts.append(y)
    oracle(ours.card.name, f"transformers {source}, token by token", torch.cat(parts, dim=1), expected, limit=1e-6)


def joined(theirs: Any, *names: str) -> Tensor:
    return torch.cat([getattr(theirs, name).weight for name in names])


@pytest.mark.parametrize(("module", "name"), [("llama", "Llama"), ("qwen3", "Qwen3"), ("gpt_oss", "GptOss")])
def test_softmax_attention(oracle, module, name):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        **COMMON, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    theirs, run = layer_of_theirs(module, name, config)
    weights = {"qkv_proj.weight": joined(theirs, "q_proj", "k_proj", "v_proj"), "o_proj.weight": theirs.o_proj.weight}
    if name == "Qwen3":
        weights |= {"q_norm.weight": theirs.q_norm.weight, "k_norm.weight": theirs.k_norm.weight}
    if name == "GptOss":
        weights["sink_logits"] = theirs.sinks
    options = {"qk_norm": name == "Qwen3", "sinks": name == "GptOss"}
    ours = create_mixer("softmax_attention", WIDTH, heads=4, kv_heads=2, d_head=8, **options)
    compare(oracle, ours, run, weights, f"{name}Attention")


def test_gated_attention(oracle):
    from transformers import Qwen3NextConfig

    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    theirs, run = layer_of_theirs("qwen3_next", "Qwen3Next", Qwen3NextConfig(**COMMON, rope_parameters=rope))
    q, gate = theirs.q_proj.weight.unflatten(0, (4, 2, 8)).unbind(1)
    weights = {
        "qkv_proj.weight": torch.cat([q.flatten(0, 1), theirs.k_proj.weight, theirs.v_proj.weight]),
        "out.g_proj.weight": gate.flatten(0, 1),
        "out.o_proj.weight": theirs.o_proj.weight,
        "q_norm.weight": 1 + theirs.q_norm.weight,  # theirs are stored less 1
        "k_norm.weight": 1 + theirs.k_norm.weight,
    }
    compare(oracle, create_mixer("gated_attention", WIDTH, heads=4, kv_heads=2), run, weights, "Qwen3NextAttention")


@pytest.mark.parametrize("layer", [0, 3])
def test_differential_attention(oracle, layer):
    from transformers import DiffLlamaConfig

    rope = {"rope_type": "default", "rope_theta": 1e4}
    theirs, run = layer_of_theirs("diffllama", "DiffLlama", DiffLlamaConfig(**COMMON, rope_parameters=rope), layer)
    # the two halves of a value are heads of theirs
    value = theirs.v_proj.weight.unflatten(0, (2, 1, 8)).transpose(0, 1).flatten(0, 2)
    weights = {
        "qkv_proj.weight": torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, value]),
        "o_proj.weight": theirs.o_proj.weight,
        "o_norm.weight": torch.ones(16),
        **{name: getattr(theirs, name) for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")},
    }
    ours = create_mixer("differential_attention", WIDTH, heads=2, kv_heads=1, layer=layer, n_layers=4)
    compare(oracle, ours, run, weights, "DiffLlamaAttention")


@pytest.mark.parametrize(("module", "name"), [("deepseek_v2", "DeepseekV2"), ("deepseek_v3", "DeepseekV3")])
@pytest.mark.parametrize("d_query_latent", [None, 12])
def test_multi_head_latent_attention(oracle, module, name, d_query_latent):
    import transformers

    sizes = {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
    common = {k: v for k, v in COMMON.items() if k not in ("num_key_value_heads", "head_dim")}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = getattr(transformers, f"{name}Config")(
        **common, **sizes, num_key_value_heads=4, head_dim=4, q_lora_rank=d_query_latent, rope_parameters=rope
    )
    theirs, run = layer_of_theirs(module, name, config)
    for norm in (theirs.kv_a_layernorm, *([theirs.q_a_layernorm] if d_query_latent else [])):
        norm.variance_epsilon = 1e-5  # they do not take it from the config

    # theirs turns neighbouring features, ours those half a head apart
    def halves(weight: Tensor, heads: int) -> Tensor:
        *plain, rotary = weight.unflatten(0, (heads, -1)).split([weight.shape[0] // heads - 4, 4], dim=1)
        return torch.cat([*plain, rotary[:, [0, 2, 1, 3]]], dim=1).flatten(0, 1)

    queries = theirs.q_b_proj if d_query_latent else theirs.q_proj
    weights = {
        "q_proj.weight": halves(queries.weight, 4),
        "latent_proj.weight": halves(theirs.kv_a_proj_with_mqa.weight, 1),
        "latent_norm.weight": theirs.kv_a_layernorm.weight,
        "kv_proj.weight": theirs.kv_b_proj.weight,
        "o_proj.weight": theirs.o_proj.weight,
    }
    if d_query_latent:
        weights |= {"q_latent_proj.weight": theirs.q_a_proj.weight, "q_norm.weight": theirs.q_a_layernorm.weight}
    options = {"d_latent": 16, "d_rope": 4, "d_head": 8, "d_value": 6, "d_query_latent": d_query_latent}
    ours = create_mixer("multi_head_latent_attention", WIDTH, heads=4, **options)
    compare(oracle, ours, run, weights, f"{name}Attention")
