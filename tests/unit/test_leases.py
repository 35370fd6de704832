"""Builders that share a store by leases build every unit once, and take over the units of dead builders."""

import json
import os
import socket
import subprocess
import sys

import pytest

from kdcache.cache.build.assignment import FixedAssignment, LeasedAssignment
from kdcache.cache.build.leases import LEASES, LeaseObserver, lease_path
from kdcache.cache.build.watch import StoreWatch
from kdcache.cache.store.spec import VIEWS

BEAT_S = 0.02


@pytest.fixture
def begun(tmp_path, stores):
    """A store of two passes of three units, of which none is built."""
    store = stores["begin"](str(tmp_path / "begun"), stores["spec"]())
    store.raise_goal(2)
    for index in (0, 1):
        store.create_pass(index)
    return store


def share_of(store, heartbeat_s=BEAT_S):
    missing = [(index, unit) for index in (0, 1) for unit in range(3)]
    return LeasedAssignment(store, missing, heartbeat_s=heartbeat_s)


def commit(store, stores, place):
    index, unit = place
    rows = store.spec.unit_rows(unit)
    arrays = {
        name: array[rows.start : rows.stop] for name, array in stores["rows"](store.spec, index).items()
    }
    assert VIEWS in arrays
    store.put_unit(index, unit, arrays, {})


def put_lease(store, place, takeover=0, *, host="elsewhere", process=1, beats=0):
    fields = {"builder": "b", "host": host, "process": process, "beats": beats}
    store.objects.overwrite(lease_path(*place, takeover), json.dumps(fields).encode())


def leases_of(store):
    return [name for index in ("000", "001") for name in store.objects.names(f"{LEASES}/{index}")]


def test_builders_that_take_turns_get_every_unit_once(begun, stores):
    got = {0: [], 1: [], 2: []}
    with share_of(begun) as first, share_of(begun) as second, share_of(begun) as third:
        shares = (first, second, third)
        claims = [share.claims() for share in shares]
        while any(found := [next(claim, None) for claim in claims]):
            for n, place in enumerate(found):
                if place:
                    got[n].append(place)
                    commit(begun, stores, place)
                    shares[n].finish_unit(place, committed=True)
        assert not any(share.wait(pytest.fail) for share in shares)
        assert first.entries_of_others == first.entries - sum(len(begun.spec.unit_rows(u)) for _, u in got[0])
    assert sorted(got[0] + got[1] + got[2]) == [(index, unit) for index in (0, 1) for unit in range(3)]
    assert begun.is_complete and leases_of(begun) == []


def test_passes_come_in_order(begun):
    with share_of(begun) as share:
        assert [index for index, _ in share.claims()] == [0, 0, 0, 1, 1, 1]
    assert leases_of(begun) == []  # a builder that stops early leaves no lease behind


def test_a_lease_that_beats_is_never_taken_and_a_silent_one_once(begun, stores):
    for unit in (0, 1):
        put_lease(begun, (0, unit))
    fill = [(0, 2), (1, 0), (1, 1), (1, 2)]
    for place in fill:
        commit(begun, stores, place)
    beats = 0

    def beat(note):
        nonlocal beats
        assert note in ("waiting for 2 units of other builders", "waiting for 1 unit of other builders")
        beats += 1
        put_lease(begun, (0, 1), beats=beats)
        if beats == 40:
            commit(begun, stores, (0, 1))

    with share_of(begun) as first, share_of(begun) as second:
        assert first.wait(beat) and list(first.claims()) == [(0, 0)]
        assert lease_path(0, 0, 1).endswith(begun.objects.names(f"{LEASES}/000")[1])
        # It noticed the silent builder later, and the unit is already taken.
        assert list(second.claims()) == []
        commit(begun, stores, (0, 0))
        first.finish_unit((0, 0), committed=True)
        assert not first.wait(beat) and beats >= 40
        assert not second.wait(pytest.fail)
    assert begun.complete_passes() == [0, 1] and leases_of(begun) == []


def test_of_two_that_take_over_one_does(begun):
    for index in (0, 1):
        for unit in range(3):
            put_lease(begun, (index, unit))
    with share_of(begun) as first, share_of(begun) as second:
        assert first.wait(str) and second.wait(str)
        places = [place for pair in zip(first.claims(), second.claims(), strict=False) for place in pair]
        assert len(set(places)) == len(places) > 1


def test_time_in_which_nobody_looked_is_one_beat(begun, monkeypatch):
    now = 0.0
    monkeypatch.setattr("kdcache.cache.build.leases.time.monotonic", lambda: now)
    put_lease(begun, (0, 0))
    watch = LeaseObserver(begun.objects, 15.0)

    def look_at(moment):
        nonlocal now
        now = moment
        (lease,) = watch.observe(0, watch.newest_takeovers(0))
        return lease.seen_s, lease.unchanged_s

    assert look_at(0.0) == (0.0, 0.0)
    assert look_at(10.0) == (10.0, 10.0)
    assert look_at(1010.0) == (1010.0, 25.0)  # the storage was away
    put_lease(begun, (0, 0), beats=1)
    assert look_at(1020.0) == (1020.0, 0.0)


def test_a_process_of_this_host_that_is_gone_holds_nothing(begun):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1, check=True
    ).stdout
    for index in (0, 1):
        for unit in range(3):
            process = int(gone) if unit == 0 else os.getpid()
            put_lease(begun, (index, unit), host=socket.gethostname(), process=process)
    with share_of(begun, heartbeat_s=15.0) as share:
        assert list(share.claims()) == [(0, 0), (1, 0)]


def test_a_unit_that_was_committed_meanwhile_is_not_begun(begun, stores):
    with share_of(begun) as share:
        claims = share.claims()
        first = next(claims)
        others = [(0, unit) for unit in range(3) if (0, unit) != first]
        for place in others:  # by a builder whose leases are removed already
            commit(begun, stores, place)
        assert [next(claims)[0] for _ in range(3)] == [1, 1, 1]
        assert share.entries_of_others == sum(len(begun.spec.unit_rows(unit)) for _, unit in others)


def test_units_left_to_others_are_not_waited_for(begun):
    with share_of(begun) as share:
        for place in share.claims():
            share.finish_unit(place, committed=False)
        assert not share.wait(pytest.fail)
        assert len(share.left) == 6 and leases_of(begun) == []


@pytest.mark.parametrize(
    "damage", [b"", b"[1]", b'{"host": "a\\u001b[2J", "process": 1}', b'{"host": "a", "process": 1e999}']
)
def test_a_damaged_lease_is_nobodys_and_ends_like_others(begun, damage):
    begun.objects.put_new(lease_path(0, 0, 0), damage)
    for name in ("notes.txt", "000001-", "000001-99999"):
        begun.objects.put_new(f"{LEASES}/000/{name}", b"x")
    (lease,) = StoreWatch(begun).status().leases
    assert (lease.host, lease.process) == ("?", 0)
    with share_of(begun) as share:
        assert len(list(share.claims())) == 5
        assert share.wait(str)
        assert next(share.claims()) == (0, 0)


def test_a_fixed_share_is_given_once(begun):
    share = FixedAssignment(begun, [(0, 1), (1, 2)])
    assert list(share.claims()) == [(0, 1), (1, 2)]
    share.finish_unit((0, 1), committed=True)
    assert share.entries == 3 + 1 and share.built == {(0, 1)} and not share.wait(pytest.fail)


def test_a_watch_sees_what_all_do(begun, stores, monkeypatch):
    now = 100.0
    monkeypatch.setattr("kdcache.cache.build.watch.time.monotonic", lambda: now)
    watch = StoreWatch(begun)
    standing = watch.status()
    assert (standing.units_done, standing.units_planned, standing.units_per_s) == (0, 6, None)
    put_lease(begun, (1, 0), takeover=2, process=7)
    stores["fill"](begun, 0)
    now += 6.0
    standing = watch.status()
    assert (standing.units_done, standing.passes_complete, standing.units_per_s) == (3, 1, 0.5)
    assert standing.seconds_left == 6.0 and not standing.is_complete
    assert [(each.unit, each.takeover, each.host, each.process) for each in standing.leases] == [
        (0, 2, "elsewhere", 7)
    ]
    stores["fill"](begun, 1)
    assert watch.status().is_complete
