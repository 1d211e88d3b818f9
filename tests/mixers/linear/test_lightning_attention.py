"""Lightning attention against the layer of MiniMax-01 in transformers, with copied weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_the_layer_of_minimax(oracle: Any, layer: int) -> None:
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    torch.manual_seed(0)
    config = MiniMaxConfig(hidden_size=32, num_attention_heads=2, head_dim=16, num_hidden_layers=4, block_size=16)
    theirs: Any = MiniMaxLightningAttention(config, layer)
    mixer: Any = create_mixer("lightning_attention", 32, heads=2, chunk_size=8, layer=layer, n_layers=4)
    with torch.no_grad():
        # theirs holds q, k and v head by head, ours one after the other
        mixer.qkv_proj.weight.copy_(theirs.qkv_proj.weight.unflatten(0, (2, 3, 16)).transpose(0, 1).flatten(0, 2))
        mixer.g_proj.weight.copy_(theirs.output_gate.weight)
        mixer.o_proj.weight.copy_(theirs.out_proj.weight)
        mixer.o_norm.eps = theirs.norm.variance_epsilon
        x = torch.randn(2, 50, 32)
        oracle("lightning_attention", "transformers MiniMaxLightningAttention", mixer(x)[0], theirs(x, None, None)[0])
