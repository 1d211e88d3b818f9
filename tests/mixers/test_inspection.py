"""Looking inside: traces worked out by hand, and recordings against what the states say."""

import math
from types import SimpleNamespace

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.memory import fwpkm_inspection as inspection
from mixerzoo.mixers.memory.fwpkm_inspection import (
    LayerTrace,
    SlotRead,
    Update,
    Writer,
    memory_trace,
    record_fwpkm,
    row_change,
    slot_usage,
)
from torch import nn

OPTIONS = {"n_subkeys": 4, "d_k": 4, "d_v": 6, "top_k": 2, "chunk_size": 6}


def memory(seed=0, **options):
    torch.manual_seed(seed)
    return create_mixer("fwpkm", 12, **{**OPTIONS, **options}).double()


def text(rows=2, time=20, seed=1):
    return torch.randn(rows, time, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Worked out by hand ---


def hand_made(shared=False):
    """Two rows of six tokens in chunks of three, one head, two slots a token, lookahead 1, boundary `carry`."""
    slots = [
        [[0, 1], [1, 2], [2, 3], [0, 3], [3, 1], [0, 1]],
        [[3, 2], [0, 2], [2, 1], [1, 0], [0, 2], [2, 0]],
    ]
    weights = [[0.75, 0.25], [0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.5, 0.5], [0.125, 0.875]]
    slots = torch.tensor(slots)[:, :, None]
    weights = torch.tensor([weights, weights])[:, :, None]
    # token 2 was carried over the edge, and addressed slots 0 and 3 in the new memory
    carried = torch.tensor([[[[0, 3]]], [[[0, 3]]]])
    updates = (
        Update(0, 3, slots[:, :2], weights[:, :2], torch.tensor([1.0, 2.0])),
        Update(
            2,
            6,
            torch.cat([carried, slots[:, 3:5]], 1),
            torch.cat([torch.full((2, 1, 1, 2), 0.5), weights[:, 3:5]], 1),
            torch.tensor([3.0, 4.0]),
        ),
    )
    end = torch.tensor([[0, 1], [3, 1]])[:, None, None]
    slots, weights = torch.cat([slots, end], 1), torch.cat([weights, torch.full((2, 1, 1, 2), 0.5)], 1)
    return LayerTrace("memory", 16, 1, shared, 0, None, slots, weights, updates)


def test_the_first_chunk_reads_what_nobody_wrote():
    assert memory_trace(hand_made(), 2) == [SlotRead(2, 0, 1.0, 0, ()), SlotRead(3, 0, 0.0, 0, ())]


def test_a_token_reads_what_earlier_chunks_wrote_and_not_its_own():
    # token 4 reads slots 3 and 1: tokens 0 and 1 wrote slot 1 in the first chunk; token 4 itself writes both later
    reads = memory_trace(hand_made(), 4)
    assert reads[0] == SlotRead(3, 0, 0.5, 0, ())
    assert reads[1] == SlotRead(1, 0, 0.5, 2, (Writer(0, 1, 0.5), Writer(0, 0, 0.25)))


def test_the_latest_writers_come_first_and_those_carried_over_count_where_they_were_written():
    # token 6 of row 0 reads slots 0 and 1. Slot 0: token 0 in the first update, tokens 2 (carried) and 3 in the second
    slot_0, slot_1 = memory_trace(hand_made(), 6)
    assert slot_0 == SlotRead(0, 0, 0.5, 3, (Writer(0, 3, 0.25), Writer(0, 2, 0.5), Writer(0, 0, 0.75)))
    assert slot_1 == SlotRead(1, 0, 0.5, 3, (Writer(0, 4, 0.5), Writer(0, 1, 0.5), Writer(0, 0, 0.25)))
    assert memory_trace(hand_made(), 6, latest=1)[0] == SlotRead(0, 0, 0.5, 3, (Writer(0, 3, 0.25),))


def test_rows_are_apart_unless_they_share_a_memory():
    assert {w.row for read in memory_trace(hand_made(), 6, row=1) for w in read.writers} == {1}
    slot_3, _ = memory_trace(hand_made(shared=True), 6, row=1, latest=9)
    assert slot_3.slot == 3
    assert [(w.position, w.row) for w in slot_3.writers] == [(4, 0), (3, 0), (2, 0), (2, 1), (0, 1)]


def test_heads_that_write_the_same_slot_are_one_writer():
    slots = torch.tensor([[[[5], [5]], [[5], [7]]]])
    weights = torch.tensor([[[[0.25], [0.75]], [[0.5], [0.5]]]])
    update = Update(0, 1, slots[:, :1], weights[:, :1], torch.zeros(1))
    trace = LayerTrace("memory", 9, 0, False, 0, None, slots, weights, (update,))
    assert memory_trace(trace, 1) == [SlotRead(5, 0, 0.5, 1, (Writer(0, 0, 1.0),)), SlotRead(7, 1, 0.5, 0, ())]


@pytest.mark.parametrize(("position", "row"), [(7, 0), (-1, 0), (0, 2), (0, -1)])
def test_tokens_that_are_not_in_the_trace_are_refused(position, row):
    with pytest.raises(ValueError, match=r"position must be in 0\.\.6|row must be in 0\.\.1"):
        memory_trace(hand_made(), position, row)


def test_slot_usage():
    usage = slot_usage(torch.tensor([[0, 0, 3], [0, 3, 7]]), 8)
    assert (usage.accesses, usage.used, usage.coverage, usage.collisions) == (6, 3, 3 / 8, 2.0)
    entropy = -sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6))
    assert usage.divergence == pytest.approx(math.log(8) - entropy)
    assert slot_usage(torch.arange(8).repeat(3), 8).divergence == 0
    assert slot_usage(torch.full((5,), 2), 8).divergence == pytest.approx(math.log(8))


def state_of(slots, rows, shared=False):
    """What is asked of the state of a memory of four slots that wrote `rows` to `slots`."""
    slots, rows = torch.tensor(slots), torch.tensor(rows)
    return SimpleNamespace(slots=slots, rows=rows, n_slots=4, batch=2, shared_memory=shared)


def test_how_far_rows_moved():
    initial = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    first = state_of([1, 4], [[4.0, 5.0], [6.0, 8.0]])  # slot 1 of row 0 by (3, 4), slot 0 of row 1 by (6, 8)
    assert row_change(None, first, initial).tolist() == [5.0, 10.0]
    second = state_of([1, 2, 4], [[4.0, 5.0], [2.0, 3.0], [6.0, 0.0]])
    assert row_change(first, second, initial).tolist() == [1.0, 8.0]
    shared = state_of([1, 2], [[4.0, 5.0], [2.0, 14.0]], shared=True)
    assert row_change(None, shared, initial).tolist() == [13.0]


# --- Recorded ---


def test_nothing_is_recorded_outside_of_the_context():
    mixer = memory()
    with record_fwpkm(mixer) as traces:
        assert traces == {} and inspection.recorder() is not None
    mixer(text())
    assert traces == {} and inspection.recorder() is None


def test_recording_changes_nothing():
    mixer, x = memory(), text().requires_grad_()
    expected, after = mixer(x, return_state=True)
    with record_fwpkm(mixer):
        y, state = mixer(x, return_state=True)
    assert torch.equal(y, expected) and torch.equal(state.rows, after.rows) and state.position == 20
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("boundary", ["carry", "drop"])
@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("lookahead", [0, 1, 4])
def test_updates_are_those_of_the_states(boundary, scope, lookahead):
    """The rows that each rewrite changed are the slots of the tokens that were written."""
    mixer, x = memory(boundary=boundary, scope=scope, lookahead=lookahead, heads=2), text()
    with record_fwpkm(nn.ModuleDict({"layer": mixer})) as traces:
        mixer(x)
    trace = traces["layer"]
    assert (trace.name, trace.n_slots, trace.lookahead, trace.start, trace.end) == ("layer", 16, lookahead, 0, 20)
    assert trace.shared == (scope == "batch") and trace.slots.shape == (2, 20, 2, 2)
    assert [u.end for u in trace.updates] == [6, 12, 18]
    carried = lookahead if boundary == "carry" else 0
    assert [u.start for u in trace.updates] == [0, 6 - carried, 12 - carried]
    assert [u.start + u.slots.shape[1] for u in trace.updates] == [6 - lookahead, 12 - lookahead, 18 - lookahead]
    torch.testing.assert_close(trace.weights.sum((-1, -2)), torch.ones(2, 20).double())
    memories, state = (1 if trace.shared else 2), None
    tables = mixer.values.repeat(memories, 1, 1)
    for update in trace.updates:
        _, state = mixer(x[:, update.end - 6 : update.end], state, return_state=True)
        before, tables = tables, mixer.values.repeat(memories, 1).index_put((state.slots,), state.rows)
        tables = tables.view(memories, 16, 6)
        torch.testing.assert_close(update.change, (tables - before).flatten(1).norm(dim=1))
        for m in range(memories):
            changed = (tables[m] != before[m]).any(1).nonzero()[:, 0].tolist()
            slots = update.slots if trace.shared else update.slots[m]
            assert changed == sorted(set(slots.flatten().tolist()))


def test_the_trace_does_not_depend_on_how_the_text_is_cut():
    mixer, x = memory(lookahead=2), text()
    with record_fwpkm(mixer) as whole:
        mixer(x)
    with record_fwpkm(mixer) as pieces:
        state = None
        for piece in x.split([1, 4, 1, 1, 9, 4], dim=1):
            _, state = mixer(piece, state, return_state=True)
    a, b = whole[""], pieces[""]
    torch.testing.assert_close(a.gates, b.gates)
    assert torch.equal(a.slots, b.slots) and len(a.updates) == len(b.updates) == 3
    for first, second in zip(a.updates, b.updates, strict=True):
        assert (first.start, first.end) == (second.start, second.end)
        assert torch.equal(first.slots, second.slots)
        torch.testing.assert_close(first.weights, second.weights)
        torch.testing.assert_close(first.change, second.change)


def test_gates_are_those_of_the_layer():
    mixer, x = memory(), text()
    with record_fwpkm(mixer) as traces:
        mixer(x)
    expected = torch.sigmoid(mixer.gate_proj(mixer.gate_norm(x))).squeeze(-1)
    torch.testing.assert_close(traces[""].gates, expected)
    assert not traces[""].gates.requires_grad and not traces[""].weights.requires_grad


def test_a_layer_without_gates_has_none_and_one_with_gates_that_do_not_weigh_has_them():
    for options, shape in (({"gate": False}, None), ({"gated_loss": False}, (2, 20))):
        mixer = memory(**options)
        with record_fwpkm(mixer) as traces:
            mixer(text()[:, :9], return_state=True)
            mixer(text())
        assert (traces[""].gates if shape is None else traces[""].gates.shape) == shape
        assert len(traces[""].updates) == 3 and all((u.change > 0).all() for u in traces[""].updates)


def test_recording_leaves_a_memory_that_outlives_its_calls_as_it_would_be():
    watched, plain = memory(scope="persistent"), memory(scope="persistent")
    with torch.no_grad():
        for seed in range(3):
            with record_fwpkm(watched) as traces:
                y, _ = watched(text(seed=seed))
            assert torch.equal(y, plain(text(seed=seed))[0])
    assert torch.equal(watched.kept_state.rows, plain.kept_state.rows)
    assert traces[""].shared and (traces[""].start, traces[""].end) == (0, 20)


def test_chunks_may_change_between_texts():
    mixer, x = memory(), text()
    with record_fwpkm(mixer) as traces:
        _, state = mixer(x, return_state=True)
        again = mixer.restart(state)
        mixer.chunk_size = 10
        mixer(x, again)
    assert [u.end for u in traces[""].updates] == [10, 20]
    _, after = mixer(x[:, :10], again, return_state=True)
    torch.testing.assert_close(traces[""].updates[0].change, row_change(again.fast, after.fast, mixer.values))


def test_another_text_starts_another_trace_and_what_came_before_is_not_known():
    mixer, x = memory(), text()
    with record_fwpkm(mixer) as traces:
        mixer(x)
        mixer(x[:1, :7])
        assert traces[""].slots.shape[:2] == (1, 7) and len(traces[""].updates) == 1
    _, state = mixer(x[:, :9], return_state=True)
    with record_fwpkm(mixer) as traces:
        mixer(x[:, 9:], state)
    trace = traces[""]
    assert (trace.start, trace.end) == (9, 20)
    assert [(u.start, u.end) for u in trace.updates] == [(9, 12), (11, 18)]
    assert memory_trace(trace, 11)[0].writers == ()


def test_layers_of_other_models_are_left_out():
    mixer, other = memory(), memory()
    with record_fwpkm(nn.ModuleList([mixer, nn.Linear(2, 2)])) as traces:
        other(text())
        mixer(text())
    assert set(traces) == {"0"}


def test_what_is_found_again_is_traced_to_who_wrote_it():
    """A token that comes back three chunks later reads slots that its first occurrence wrote."""
    mixer, x = memory(n_subkeys=16, key_objective="none"), text(rows=1, time=30)
    x[0, 27] = x[0, 2]
    with record_fwpkm(mixer) as traces:
        mixer(x)
    for read in memory_trace(traces[""], 27, latest=99):
        assert any(w.position == 2 and w.weight == pytest.approx(read.weight) for w in read.writers)
