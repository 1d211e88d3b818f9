"""What is noted of sparse memories while they are asked, against traces of the same reading."""

import json
import math

import pytest
import torch
from mixerzoo.benchmarks.measures.recall import Recall
from mixerzoo.benchmarks.measures.sparse_memories import SparseMemories
from mixerzoo.benchmarks.training import TrainingSettings
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.memory.fwpkm_inspection import memory_trace, record_fwpkm, slot_usage, watch_fwpkm
from mixerzoo.models import LanguageModel, ModelConfig

OPTIONS = {"n_subkeys": 4, "d_k": 4, "d_v": 6, "top_k": 2, "chunk_size": 6, "key_objective": "none"}
ROWS, TIME = 3, 20


def memory(**options):
    torch.manual_seed(0)
    return create_mixer("fwpkm", 12, **{**OPTIONS, **options}).double()


def text():
    return torch.randn(ROWS, TIME, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def watch(mixer, x, pieces=(TIME,), asked=None):
    seen, state = SparseMemories(mixer, torch.zeros(ROWS, TIME, dtype=torch.bool) if asked is None else asked), None
    with watch_fwpkm(seen):
        for piece in x.split(list(pieces), 1):
            _, state = mixer(piece, state, return_state=True)
    (row,) = seen.rows()
    return row, state


@pytest.mark.parametrize("options", [{}, {"scope": "batch"}, {"heads": 2, "lookahead": 2}, {"boundary": "drop"}])
def test_counts_are_those_of_a_trace(options):
    mixer, x = memory(**options), text()
    row, state = watch(mixer, x)
    with record_fwpkm(mixer) as traces, torch.no_grad():
        mixer(x)
    (trace,) = traces.values()
    reads = [read for r in range(ROWS) for t in range(TIME) for read in memory_trace(trace, t, r)]
    assert row["hits"] == pytest.approx(sum(read.writes > 0 for read in reads) / len(reads)) and 0 < row["hits"] < 1
    memories = 1 if options.get("scope") == "batch" else ROWS
    usages = [slot_usage(slots, 16) for slots in trace.slots.view(memories, -1)]
    assert row["used"] == pytest.approx(sum(u.used for u in usages) / memories)
    assert row["accesses"] == pytest.approx(sum(u.collisions for u in usages) / memories)
    assert row["perplexity"] == pytest.approx(sum(16 * math.exp(-u.divergence) for u in usages) / memories)
    assert row["written"] == len(state.slots) / (16 * memories)
    assert row["gate"]["mean"] == pytest.approx(float(trace.gates.mean()), abs=1e-6)
    exact = torch.quantile(trace.gates.flatten(), torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    shown = [row["gate"]["quantiles"][q] for q in ("0.05", "0.5", "0.95")]
    assert shown == pytest.approx(exact.tolist(), abs=0.05) and shown == sorted(shown)


def test_pieces_count_like_the_whole_and_a_second_reading_not_at_all():
    mixer, x = memory(), text()
    whole, _ = watch(mixer, x)
    assert watch(mixer, x, (1, 5, 6, 3, 5))[0] == whole
    seen = SparseMemories(mixer, torch.zeros(ROWS, TIME, dtype=torch.bool))
    with watch_fwpkm(seen), torch.no_grad():
        mixer(x, return_state=True)
        once = seen.rows()
        mixer(x, return_state=True)
        memory()(x)  # of another model
    assert seen.rows() == once == [{**whole, "layer": ""}]


def test_gates_of_tokens_that_answer_are_counted_apart():
    mixer, x = memory(), text()
    asked = torch.zeros(ROWS, TIME, dtype=torch.bool)
    asked[1, 7] = asked[2, 19] = True
    row, _ = watch(mixer, x, (10, 10), asked)
    with torch.no_grad():
        _, _, gates = mixer.project(x)
    assert row["gate_asked"]["mean"] == pytest.approx(float(gates[asked].mean()), abs=1e-6) != row["gate"]["mean"]
    without, _ = watch(memory(gate=False), x)
    assert without["gate"] is None and without["gate_asked"] is None and without["used"] > 0


def test_recall_notes_each_length_and_load_once():
    layout = "sliding_window_attention(heads=2, window=8) | fwpkm(n_subkeys=8, d_k=8, d_v=8, top_k=2, chunk_size=16)@1"
    model = LanguageModel(ModelConfig(layout, d_model=16, n_layers=2)).eval()
    brief = TrainingSettings(steps=2, batch=2, length=64)
    recall = Recall(
        training=brief, lengths=(128,), loads=(2, 4), examples=5, eval_batch=2, passes=(1, 2), chunk_size=50,
        memory=("fresh", "persistent"),
    )  # fmt: skip
    metrics = recall.ask(model, seed=0, device=torch.device("cpu"), progress=lambda *_: None)
    found = metrics["memories"]
    assert found == json.loads(json.dumps(found))
    assert [(row["length"], row["load"], row["tokens"], row["sequences"]) for row in found] == [
        (128, 2, 128, 2),
        (128, 4, 128, 2),
    ]
    assert all(0 < row["gate_asked"]["mean"] < 1 and 0 < row["written"] < 1 and row["used"] > 0 for row in found)
