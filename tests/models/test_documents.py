"""Packed documents in a model: each is read as if it were alone."""

import itertools

import pytest
import torch
from mixerzoo.models import LanguageModel, ModelConfig
from torch.nn import functional as F

LAYOUT = (
    "softmax_attention, gated_deltanet, sliding_window_attention(window=5), linear_attention"
    " | fwpkm(n_subkeys=8, d_k=16, d_v=16, chunk_size=4)@1 + pkm(n_subkeys=8, heads=2, top_k=4, d_k=16)@3"
)
EDGES = [0, 3, 4, 11, 20, 29, 36]  # of 2 rows of 18 tokens: one document has its end in the second row


@pytest.fixture
def model():
    return LanguageModel(ModelConfig(LAYOUT, d_model=32, n_layers=4, d_ff=32, vocab_size=50)).double()


@pytest.fixture
def tokens():
    return torch.randint(50, (2, 18), generator=torch.Generator().manual_seed(0))


def pieces(tokens):
    """What is read by itself: the documents, cut where the first row ends."""
    cut = [0, 3, 4, 11, 18, 20, 29, 36]
    return [tokens.reshape(1, -1)[:, a:b] for a, b in itertools.pairwise(cut)]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_equals_separate_in_logits_loss_and_gradients(model, tokens, recompute):
    targets = torch.randint(50, tokens.shape, generator=torch.Generator().manual_seed(1))
    model.train().checkpoint_activations = recompute
    packed, none = model(tokens, documents=torch.tensor(EDGES))
    assert none is None and packed.shape == (2, 18, 50)
    loss = F.cross_entropy(packed.flatten(0, 1), targets.flatten())
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    separate = torch.cat([model(piece)[0] for piece in pieces(tokens)], dim=1).reshape(packed.shape)
    expected = F.cross_entropy(separate.flatten(0, 1), targets.flatten())
    expected.backward()
    torch.testing.assert_close(packed, separate, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-10, msg=name)
    assert (model(tokens)[0] - separate).abs().max() > 1e-3  # the edges do change something


def test_lists_are_edges_too_and_rows_alone_are_plain_reading(model, tokens):
    assert torch.equal(model(tokens, documents=EDGES)[0], model(tokens, documents=torch.tensor(EDGES))[0])
    torch.testing.assert_close(model(tokens, documents=[0, 36])[0], model(tokens)[0], rtol=1e-10, atol=1e-10)


def test_documents_that_do_not_fit_are_refused_before_any_work(model, tokens):
    _, state = model(tokens, return_state=True)
    for module in model.mixers():
        module.register_forward_pre_hook(lambda *_: pytest.fail("work was done"))
    for edges in ([0, 35], [1, 36], [0, 5, 5, 36], [0, 7, 6, 36]):
        with pytest.raises(ValueError, match="documents must rise from 0 to the 36 tokens"):
            model(tokens, documents=edges)
    with pytest.raises(ValueError, match="documents or a state, not both"):
        model(tokens, state, documents=EDGES)
    with pytest.raises(ValueError, match="documents or a state, not both"):
        model(tokens, return_state=True, documents=EDGES)
