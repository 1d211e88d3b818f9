"""The plain-torch pieces of FwPKM against the sums they stand for."""

import pytest
import torch
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
    torch.testing.assert_close(TORCH.read(table, ids, weights), torch.einsum("nj,njd->nd", weights, table[ids]))
    torch.testing.assert_close(TORCH.gather_dot(table, ids, x), torch.einsum("nd,njd->nj", x, table[ids]))


@pytest.mark.parametrize("n_rows", [None, ROWS])
def test_sums_by_row(ids, n_rows):
    x, weights = draw(N, D, seed=2), draw(N, SLOTS, seed=3)
    chosen = torch.nn.functional.one_hot(ids, ROWS).double()
    expected = torch.einsum("njr,nj,nd->rd", chosen, weights, x)
    accesses = Accesses(ids, n_rows)
    assert accesses.rows.tolist() == (ids.unique().tolist() if n_rows is None else list(range(ROWS)))
    torch.testing.assert_close(TORCH.spread(accesses, x, weights), expected[accesses.rows])
    table = draw(ROWS, D, seed=4)
    added = table.clone()
    TORCH.add(added, accesses, x, weights, -1.0)
    torch.testing.assert_close(added, table - expected)


@pytest.mark.parametrize("n_rows", [None, ROWS])
def test_accesses_are_counted_for_some_of_the_tokens(ids, n_rows):
    counted = torch.arange(N) % 4 < 3
    expected = torch.bincount(ids[counted].flatten(), minlength=ROWS)
    accesses = Accesses(ids, n_rows)
    by_row, by_access = accesses.count(counted)
    assert by_row.equal(expected[accesses.rows])
    assert by_access.equal(expected[ids])


def test_places_need_not_lie_together_in_memory(ids):
    table, x = draw(ROWS, D, seed=1), draw(2 * N, D, seed=2)
    strided = Accesses(ids.repeat_interleave(2, 0)[::2][:, :1])
    torch.testing.assert_close(TORCH.gather_dot(table, strided.ids, x[:N]), (table[ids[:, 0]] * x[:N]).sum(-1, True))
