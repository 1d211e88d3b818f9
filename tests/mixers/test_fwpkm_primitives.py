"""The plain-torch pieces of FwPKM against the sums they stand for, and the plan of a call against its chunks."""

import pytest
import torch
from mixerzoo.mixers.ops.chunks import Chunks
from mixerzoo.mixers.ops.fwpkm.plan import lay_out, make_plan
from mixerzoo.mixers.ops.fwpkm.primitives import TORCH, Accesses

N, SLOTS, ROWS, D = 12, 3, 9, 5


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def ids():
    ids = torch.randint(ROWS - 1, (N, SLOTS), generator=torch.Generator().manual_seed(0))  # nobody touches the last row
    ids[:, 0] = 2
    return ids


def test_rows_are_read_and_multiplied(ids):
    table, x, weights = draw(ROWS, D, seed=1), draw(N, D, seed=2), draw(N, SLOTS, seed=3)
    accesses = Accesses.to(ids, ROWS)
    torch.testing.assert_close(TORCH.read(table, accesses, weights), torch.einsum("nj,njd->nd", weights, table[ids]))
    torch.testing.assert_close(TORCH.gather_dot(table, accesses, x), torch.einsum("nd,njd->nj", x, table[ids]))


def test_sums_by_row(ids):
    x, weights = draw(N, D, seed=2), draw(N, SLOTS, seed=3)
    chosen = torch.nn.functional.one_hot(ids, ROWS).double()
    expected = torch.einsum("njr,nj,nd->rd", chosen, weights, x)
    accesses = Accesses.to(ids, ROWS)
    assert accesses.rows.tolist() == list(range(ROWS))
    assert accesses.token.equal(accesses.owner[accesses.order])
    torch.testing.assert_close(TORCH.spread(accesses, x, accesses.sort(weights)), expected)
    tables = draw(ROWS, D, seed=4), draw(ROWS, D, seed=5)
    added = [t.clone() for t in tables]
    TORCH.add(added[0], accesses, x, accesses.sort(weights))
    torch.testing.assert_close(added[0], tables[0] + expected)
    TORCH.add_both(*added, accesses, (x, accesses.sort(-weights)), (2 * x, accesses.sort(weights)))
    torch.testing.assert_close(added[0], tables[0])
    torch.testing.assert_close(added[1], tables[1] + 2 * expected)


def test_places_need_not_lie_together_in_memory(ids):
    table, x = draw(ROWS, D, seed=1), draw(2 * N, D, seed=2)
    strided = Accesses.to(ids.repeat_interleave(2, 0)[::2][:, :1], ROWS)
    torch.testing.assert_close(TORCH.gather_dot(table, strided, x[:N]), (table[ids[:, 0]] * x[:N]).sum(-1, True))


# ---------------------------------------------------------------------------------------------------------------------
# The plan


@pytest.mark.parametrize("boundary", ["carry", "drop"])
@pytest.mark.parametrize(("position", "end", "finish"), [(0, 20, False), (0, 24, False), (5, 21, True), (3, 7, False)])
def test_the_plan_of_all_windows_is_that_of_each(position, end, finish, boundary):
    """Against Python sets and dictionaries, window by window."""
    rows, slots_each, chunks = 2, 3, Chunks(8, 2, boundary)
    segments = chunks.segments(position, end, finish)
    begin, n = segments[0].start, end - segments[0].start
    layout = lay_out(segments, begin, n, 2, rows, torch.device("cpu"))
    by_token = torch.randint(30, (rows * n, slots_each), generator=torch.Generator().manual_seed(end))
    slots = by_token[layout.token]
    plan = make_plan(layout, slots, torch.float64)
    assert plan.touched.tolist() == sorted(set(slots.flatten().tolist()))
    written, all_weights = set(), draw(len(slots), slots_each, seed=1)
    for i, (segment, accesses, counts) in enumerate(zip(segments, plan.accesses, plan.counts)):
        tokens = [(r, t) for r in range(rows) for t in range(segment.start, segment.end)]
        mine = [by_token[r * n + t - begin].tolist() for r, t in tokens]
        assert plan.touched[accesses.ids].tolist() == mine
        assert plan.touched[accesses.rows].tolist() == sorted({s for m in mine for s in m})
        assert [m for m, c in zip(layout.paired.split(layout.lengths)[i], tokens) if m] == [
            True for _, t in tokens if t < segment.pair_end
        ]
        counted = [s for m, (_, t) in zip(mine, tokens) if t < segment.access_end for s in m]
        assert counts.tolist() == [counted.count(s) for s in plan.touched[accesses.rows].tolist()]
        share = [[slots_each * segment.scale / max(1, counted.count(s)) for s in m] for m in mine]
        torch.testing.assert_close(plan.split(plan.share)[i].tolist(), share)
        weights = plan.split(all_weights)[i]
        x, expected = torch.eye(len(tokens), dtype=torch.float64), torch.zeros(len(plan.touched), len(tokens))
        for token, places in enumerate(accesses.ids.tolist()):
            for j, row in enumerate(places):
                expected[row, token] += weights[token, j]
        found = TORCH.spread(accesses, x, accesses.sort(all_weights))
        torch.testing.assert_close(found, expected[accesses.rows].double())
        assert accesses.sort(all_weights).equal(plan.sort(all_weights)[i])
        written |= set(counted)
    assert plan.touched[plan.written()].tolist() == sorted(written)
