"""mLSTM and sLSTM against the layers of the xlstm package, with copied weights."""

from __future__ import annotations

from typing import Any

import torch
from mixerzoo.mixers import create_mixer


def test_the_mlstm_layer_of_its_authors(oracle: Any) -> None:
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig

    torch.manual_seed(0)
    theirs: Any = mLSTMLayer(mLSTMLayerConfig(embedding_dim=32, num_heads=2, context_length=64)).double()
    mixer: Any = create_mixer("mlstm", 32, heads=2, chunk_size=16).double()
    cell = theirs.mlstm_cell
    with torch.no_grad():
        for gate in (cell.igate, cell.fgate):
            torch.nn.init.normal_(gate.weight, std=0.5)
        torch.nn.init.normal_(cell.outnorm.weight)
        mixer.in_proj.load_state_dict(theirs.proj_up.state_dict())
        mixer.conv.weight.copy_(theirs.conv1d.conv.weight[:, 0])
        mixer.conv.bias.copy_(theirs.conv1d.conv.bias)
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(mixer, name).load_state_dict(getattr(theirs, name).state_dict())
        mixer.gates_proj.weight.copy_(torch.cat([cell.igate.weight, cell.fgate.weight]))
        mixer.gates_proj.bias.copy_(torch.cat([cell.igate.bias, cell.fgate.bias]))
        mixer.o_norm.weight.copy_(1 + cell.outnorm.weight.view(2, -1))  # theirs is what it differs from 1 by
        mixer.o_proj.load_state_dict(theirs.proj_down.state_dict())
        x = torch.randn(2, 50, 32, dtype=torch.float64)
        oracle("mlstm", "xlstm mLSTMLayer", mixer(x)[0], theirs(x))


def test_the_slstm_layer_of_its_authors(oracle: Any) -> None:
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    torch.manual_seed(0)
    config = sLSTMLayerConfig(
        embedding_dim=32, num_heads=2, backend="vanilla", dtype="float32", _block_idx=1, _num_blocks=3
    )
    theirs: Any = sLSTMLayer(config).double()
    mixer: Any = create_mixer("slstm", 32, heads=2, layer=1, n_layers=3).double()
    cell = theirs.slstm_cell
    # theirs: [4 * heads * d], gate by gate; the biases start by depth
    torch.testing.assert_close(mixer.bias.transpose(0, 1).flatten().float(), cell._bias_.float())
    with torch.no_grad():
        torch.nn.init.normal_(cell._recurrent_kernel_, std=0.3)
        torch.nn.init.normal_(theirs.group_norm.weight)
        mixer.conv.weight.copy_(theirs.conv1d.conv.weight[:, 0])
        mixer.conv.bias.copy_(theirs.conv1d.conv.bias)
        # theirs names two projections the wrong way round, and gives them to the cell in the right order
        mixer.i_proj.load_state_dict(theirs.fgate.state_dict())
        mixer.f_proj.load_state_dict(theirs.igate.state_dict())
        mixer.z_proj.load_state_dict(theirs.zgate.state_dict())
        mixer.o_proj.load_state_dict(theirs.ogate.state_dict())
        mixer.recurrent.copy_(cell._recurrent_kernel_.unflatten(1, (4, 16)).permute(0, 3, 1, 2))
        mixer.o_norm.weight.copy_(1 + theirs.group_norm.weight.view(2, -1))  # theirs is what it differs from 1 by
        x = torch.randn(2, 50, 32, dtype=torch.float64)
        oracle("slstm", "xlstm sLSTMLayer", mixer(x)[0], theirs(x))
