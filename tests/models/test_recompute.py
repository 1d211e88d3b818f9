"""Layers that are computed again in the backward pass: the same gradients in less memory."""

import pytest
import torch
from mixerzoo.benchmarks.measures.meter import measure_memory
from mixerzoo.models import LanguageModel, ModelConfig

DEFAULTS = {
    "fwpkm": {"n_subkeys": 8, "d_k": 8, "d_v": 8, "top_k": 2, "chunk_size": 16},
    "fwmlp": {"d_k": 8, "d_v": 8, "d_hidden": 16, "chunk_size": 16},
    "pkm": {"n_subkeys": 8, "d_k": 8, "top_k": 2, "heads": 2},
}
LAYOUTS = [
    "softmax_attention, linear_attention",
    "gated_deltanet, sliding_window_attention(window=8) | fwpkm@1 + pkm@0",
    "softmax_attention | fwpkm(weight_decay=0.1, clip=0.5)@0 + fwmlp@1",
    "ttt_linear | fwpkm(key_objective='both', scope='batch')@0,1",
]


def build(layout, **changes):
    config = {"d_model": 16, "vocab_size": 50, "mixer_defaults": DEFAULTS, **changes}
    return LanguageModel(ModelConfig(layout, **config))


def text(batch, time):
    return torch.randint(50, (batch, time), generator=torch.Generator().manual_seed(0))


def gradients(model, tokens):
    model.zero_grad()
    logits, _ = model(tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def calls(model):
    """How often each layer is called from now on."""
    counts = [0] * len(model.layers)
    for i, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(lambda *_, i=i: counts.__setitem__(i, counts[i] + 1))
    return counts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradients_are_the_same_bit_for_bit(layout):
    model, tokens = build(layout), text(2, 60)
    expected = gradients(model, tokens)
    model.checkpoint_activations = True
    counts = calls(model)
    found = gradients(model, tokens)
    assert counts == [2, 2]
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_layers_are_computed_once_where_nothing_is_gained():
    model, tokens = build(LAYOUTS[1]), text(2, 40)
    model.checkpoint_activations = True
    counts = calls(model)
    _, state = model(tokens, return_state=True)
    with torch.no_grad():
        model(tokens)
    model.eval()
    model(tokens)[0].sum().backward()
    assert counts == [3, 3]
    model.train()
    model(tokens, state)[0].sum().backward()  # a state may be continued from
    assert counts == [5, 5]


def test_a_memory_that_outlives_the_call_is_told_everything_once():
    layout = "softmax_attention | fwpkm(scope='persistent')@1"
    model, expected, tokens = build(layout), build(layout), text(1, 40)
    model.checkpoint_activations = True
    counts = calls(model)
    for net in (model, expected):
        for _ in range(2):
            gradients(net, tokens)
    assert counts == [4, 2]
    memories = [net.layers[1].memory.kept_state for net in (model, expected)]
    assert torch.equal(memories[0].rows, memories[1].rows)


@pytest.mark.parametrize("layout", ["softmax_attention", "sliding_window_attention(window=16) | fwpkm@1,3,5,7"])
def test_a_deep_model_takes_less_memory(layout):
    model, tokens = build(layout, n_layers=8), text(4, 256)
    peaks = []
    for checkpoint_activations in (False, True):
        model.checkpoint_activations = checkpoint_activations
        gradients(model, tokens)  # parameters have their gradients from here on
        peaks.append(measure_memory(lambda: gradients(model, tokens), torch.device("cpu")).peak_bytes)
    assert peaks[1] < 0.5 * peaks[0]


def test_compiled_models_recompute_as_well():
    model, tokens = build("softmax_attention"), text(2, 20)
    expected = gradients(model, tokens)
    model.checkpoint_activations = True
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    logits, _ = compiled(tokens[:, :-1])
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
