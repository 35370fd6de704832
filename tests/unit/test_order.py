"""The order of a run: every entry once an epoch, every pass once a cycle, for any number of processes."""

import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache.errors import UsageError
from kdcache.distill.data.order import EntryOrder, FreshOrder, Order

ORDER = EntryOrder(passes=(0, 1, 4), n_images=23, unit_entries=4, pool_units=2, seed=5)
SEQUENCE = [ORDER.entry(t) for t in range(501)]


def epoch(order: Order, n_images: int, index: int) -> list[tuple[int, int]]:
    return [order.entry(t) for t in range(index * n_images, (index + 1) * n_images)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**64))
def test_an_epoch_takes_each_position_of_one_pass_once(
    n_images: int, unit_entries: int, pool_units: int, n_passes: int, seed: int
) -> None:
    passes = tuple(range(10, 10 + n_passes))
    order = EntryOrder(
        passes=passes, n_images=n_images, unit_entries=unit_entries, pool_units=pool_units, seed=seed
    )
    taken = []
    for index in range(2 * n_passes):
        entries = epoch(order, n_images, index)
        assert sorted(position for _, position in entries) == list(range(n_images))
        assert {p for p, _ in entries} == {order.pass_index(index)}
        taken.append(order.pass_index(index))
    assert sorted(taken[:n_passes]) == sorted(taken[n_passes:]) == list(passes)


def test_cycles_take_the_passes_in_new_orders() -> None:
    cycles = {tuple(ORDER.pass_index(3 * cycle + turn) for turn in range(3)) for cycle in range(60)}
    assert len(cycles) == 6


def test_passes_that_join_change_nothing_before_and_are_read_first_then() -> None:
    grown = replace(ORDER, joined=((4, (2, 7)), (9, (3,))))
    passes = [grown.pass_index(epoch) for epoch in range(26)]
    assert passes[:4] == [ORDER.pass_index(epoch) for epoch in range(4)]
    assert sorted(passes[4:6]) == [2, 7] and sorted(passes[4:9]) == [0, 1, 2, 4, 7]
    assert passes[9] == 3
    for cycle in (9, 15):
        assert sorted(passes[cycle : cycle + 6]) == [0, 1, 2, 3, 4, 7]
    assert pickle.loads(pickle.dumps(grown)) == grown
    assert epoch(grown, 23, 3) == SEQUENCE[69:92]


def test_a_pool_holds_whole_units_and_mixes_them() -> None:
    order = EntryOrder(passes=(0,), n_images=62, unit_entries=4, pool_units=4, seed=1)
    entries = [position for _, position in epoch(order, 62, 0)]
    while entries:
        # The short last unit (positions 60 and 61) takes two entries from its pool.
        length = min(len(entries), 14 if {60, 61} <= set(entries[:14]) else 16)
        pool, entries = entries[:length], entries[length:]
        units = {position // 4 for position in pool}
        assert sorted(pool) == sorted(p for u in units for p in range(4 * u, min(4 * u + 4, 62)))
        assert [p // 4 for p in pool] != sorted([p // 4 for p in pool], key=[p // 4 for p in pool].index)


def test_epochs_and_seeds_differ() -> None:
    other = EntryOrder(passes=(0, 1, 4), n_images=23, unit_entries=4, pool_units=2, seed=6)
    orders = {
        tuple(position for _, position in epoch(order, 23, k)) for order in (ORDER, other) for k in range(4)
    }
    assert len(orders) == 8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.integers(1, 12), st.integers(1, 6))
def test_processes_share_the_same_global_batch(step: int, share: int, world: int) -> None:
    batch_size = share * world
    whole = [ORDER.entry(t) for t in range(step * batch_size, (step + 1) * batch_size)]
    parts = [ORDER.batch_entries(step, batch_size, rank, world) for rank in range(world)]
    assert [entry for part in parts for entry in part] == whole
    assert {len(part) for part in parts} == {share}


@given(st.lists(st.integers(0, 500), max_size=20))
def test_random_access_equals_the_sequence(positions: list[int]) -> None:
    assert [ORDER.entry(t) for t in positions] == [SEQUENCE[t] for t in positions]


def test_the_order_of_the_passes_given_does_not_matter() -> None:
    other = EntryOrder(passes=(4, 0, 1), n_images=23, unit_entries=4, pool_units=2, seed=5)
    assert [other.entry(t) for t in range(501)] == SEQUENCE


def test_orders_pickle_small() -> None:
    order = EntryOrder(passes=(0,), n_images=100_000, unit_entries=8, pool_units=8, seed=0)
    first = order.entry(0)
    data = pickle.dumps(order)
    assert len(data) < 500
    assert pickle.loads(data).entry(0) == first


def test_fresh_views_go_on_for_ever() -> None:
    order = FreshOrder(n_images=7, seed=3)
    for view_index in (0, 1, 10_000):
        entries = epoch(order, 7, view_index)
        assert sorted(entries) == [(view_index, image) for image in range(7)]
    assert epoch(order, 7, 0) != [(0, image) for _, image in epoch(order, 7, 1)]


GOLDEN = [(1, 0), (1, 1), (1, 19), (0, 6), (0, 18), (0, 17), (0, 19), (0, 5), (0, 7), (0, 16), (0, 4), (0, 2)]
GOLDEN_FRESH = [1, 0, 2, 4, 3, 4, 1, 2, 3, 0]


def test_orders_never_change() -> None:
    """If this changes, existing runs can neither be repeated nor resumed."""
    assert [ORDER.entry(t) for t in range(20, 32)] == GOLDEN
    assert [FreshOrder(n_images=5, seed=2**70).entry(t)[1] for t in range(10)] == GOLDEN_FRESH


@pytest.mark.parametrize("name", ["n_images", "unit_entries", "pool_units"])
def test_sizes_below_one_are_refused(name: str) -> None:
    values = {"n_images": 4, "unit_entries": 2, "pool_units": 1, name: 0}
    with pytest.raises(UsageError, match=name):
        EntryOrder(passes=(0,), seed=0, **values)


@pytest.mark.parametrize("passes", [(), (1, 1)])
def test_passes_must_be_some_and_different(passes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="pass"):
        EntryOrder(passes=passes, n_images=4, unit_entries=2, pool_units=1, seed=0)
