"""Reading a text again: what a mixer keeps of the first reading, and what it must forget."""

import pytest
import torch
from mixerzoo.mixers import MixerState, create_mixer, list_mixers, mixer_card, small_options
from mixerzoo.mixers.ops.fwpkm import fwpkm

OPTIONS = {"n_subkeys": 8, "d_k": 8, "d_v": 6, "top_k": 4, "chunk_size": 8}


def memory(**options):
    torch.manual_seed(0)
    return create_mixer("fwpkm", 12, **{**OPTIONS, **options}).double()


def text(rows=2, time=21, seed=1):
    return torch.randn(rows, time, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in list_mixers() if n not in ("fwpkm", "fwmlp")])
def test_by_default_everything_is_dropped(name):
    mixer = create_mixer(name, 32, **small_options(name))
    _, state = mixer(torch.randn(2, 5, 32), return_state=True)
    assert mixer.restart(state) is None
    with pytest.raises(ValueError, match="it cannot be continued by"):
        create_mixer(name, 48, **small_options(name)).restart(state)
    assert mixer_card(name).name == name


@pytest.mark.parametrize("name", ["fwpkm", "fwmlp"])
def test_memories_keep_what_they_were_told_each_sequence_its_own(name):
    torch.manual_seed(0)
    mixer = create_mixer(name, 32, **small_options(name)).double()
    x = torch.randn(3, 37, 32, dtype=torch.float64)
    first, state = mixer(x, return_state=True)
    again = mixer.restart(state)
    assert again.position == 0 and state.position == 37
    together, _ = mixer(x, again)
    assert not torch.allclose(together[:, 0], first[:, 0])
    for row in range(3):
        _, alone = mixer(x[row : row + 1], return_state=True)
        y, _ = mixer(x[row : row + 1], mixer.restart(alone))
        torch.testing.assert_close(y[0], together[row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_a_memory_keeps_what_it_was_told_and_starts_at_position_0(scope):
    mixer, x = memory(scope=scope), text()
    first, state = mixer(x, return_state=True)
    again = mixer.restart(state)
    assert state.position == 21 and again.position == 0 and again.batch == 2
    assert torch.equal(again.slots, mixer.finish(state).slots) and len(again.slots) > len(state.slots)
    assert again.fast.queries.length == 0  # no token of the first reading is left over
    second, _ = mixer(x, again)
    assert not torch.allclose(first[:, :8], second[:, :8])  # the first chunk is read with a memory of all three
    torch.testing.assert_close(mixer(x, return_state=True)[0], first, rtol=0, atol=0)


def test_edges_of_chunks_are_those_of_the_new_reading():
    """After 21 tokens the next edge is 8 tokens into the second reading, not 3."""
    mixer, x = memory(), text()
    _, state = mixer(x, return_state=True)
    again = mixer.restart(state)
    whole, _ = mixer(x, again)
    changed = x.clone()
    changed[:, 7] += 1.0
    torch.testing.assert_close(mixer(changed, again)[0][:, :7], whole[:, :7], rtol=0, atol=0)
    _, before = mixer(x[:, :7], again, return_state=True)
    assert torch.equal(before.rows, again.rows)
    _, after = mixer(x[:, 7:8], before, return_state=True)
    assert not torch.equal(after.rows[torch.searchsorted(after.slots, again.slots)], again.rows)


def test_every_sequence_keeps_the_memory_of_its_own():
    mixer, x = memory(), text(rows=3)
    _, state = mixer(x, return_state=True)
    together, _ = mixer(x, mixer.restart(state))
    for row in range(3):
        _, alone = mixer(x[row : row + 1], return_state=True)
        y, _ = mixer(x[row : row + 1], mixer.restart(alone))
        torch.testing.assert_close(y[0], together[row], rtol=1e-12, atol=1e-12)
    swapped, _ = mixer(x, mixer.restart(state).select([1, 0, 2]))
    assert not torch.allclose(swapped[:2], together[:2])
    torch.testing.assert_close(swapped[2], together[2], rtol=1e-12, atol=1e-12)


def test_a_memory_recalls_better_at_the_second_reading():
    """What is retrieved for a token comes closer to its target with every reading of the same text."""
    mixer, x = memory(n_subkeys=16, top_k=1, lookahead=0), text(rows=1, time=24)
    errors, state = [], None
    for _ in range(3):
        targets = mixer.v_proj(mixer.v_norm(x))
        targets = (targets - targets.mean(-1, keepdim=True)) / targets.std(-1, keepdim=True)
        mixed = read_by_itself(mixer, x, state)
        errors.append(float((mixed - targets.detach()).square().mean()))
        _, state = mixer(x, state, return_state=True)
        state = mixer.restart(state)
    assert errors[0] > 2 * errors[1] and errors[1] >= errors[2] * 0.9


@torch.no_grad()
def read_by_itself(mixer, x, state):
    """What the memory retrieves, the output projection and the gate undone."""
    queries = mixer.q_proj(mixer.q_norm(x)).unflatten(-1, (mixer.heads, -1))
    targets = torch.zeros(*x.shape[:2], 6, dtype=x.dtype)
    return fwpkm(
        queries, targets, None, mixer.keys, mixer.values, **mixer.settings, state=state and state.fast
    ).retrieved


def test_an_empty_memory_stays_empty():
    mixer = memory()
    _, state = mixer(text(time=1), return_state=True)
    again = mixer.restart(state)
    assert again.position == 0 and len(again.slots) == 0
    torch.testing.assert_close(mixer(text(), again)[0], mixer(text())[0], rtol=0, atol=0)


def test_the_second_reading_may_have_other_chunks():
    """The whole text as one chunk: one rewrite for each reading."""
    mixer, x = memory(chunk_size=21), text()
    _, state = mixer(x[:, :20], return_state=True)
    again = mixer.restart(state)
    mixer.chunk_size = 8
    first, _ = mixer(x, again)
    mixer.chunk_size = 21
    second, _ = mixer(x, again)
    torch.testing.assert_close(first[:, :8], second[:, :8], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first[:, 8:], second[:, 8:])


def test_states_of_other_mixers_are_refused():
    _, state = memory()(text(), return_state=True)
    with pytest.raises(ValueError, match="it cannot be continued by"):
        memory(top_k=2).restart(state)
    with pytest.raises(ValueError, match="expects a MixerState or None as state, got str"):
        memory().restart("state")


def test_a_restarted_state_is_saved_and_loaded(tmp_path):
    mixer, x = memory(), text()
    again = mixer.restart(mixer(x, return_state=True)[1])
    again.save(tmp_path / "state.safetensors")
    loaded = MixerState.load(tmp_path / "state.safetensors")
    assert torch.equal(mixer(x, loaded)[0], mixer(x, again)[0])
