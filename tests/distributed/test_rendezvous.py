"""Who owns a document: in even shares, of which a change moves no more than one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.distributed.rendezvous import owner_of, weight

names = st.lists(st.text(min_size=1), min_size=1, max_size=9, unique=True)
NUM_OWNERS = 8
SETS = range(3)  # of owners with names of their own


def keys(count: int) -> list[str]:
    return [f"document {i}" for i in range(count)]


def owners_of(number: int) -> list[str]:
    return [f"set {number}, owner {i}" for i in range(NUM_OWNERS)]


def owned(count: int, owners: list[str]) -> dict[str, str]:
    return {key: owner_of(key, owners) for key in keys(count)}


@given(st.text(), names, st.randoms())
def test_the_order_of_owners_makes_no_difference(key, owners, random):
    shuffled = random.sample(owners, len(owners))
    assert owner_of(key, owners) == owner_of(key, shuffled)
    assert owner_of(key, owners) in owners


@given(st.lists(st.text(), max_size=20), names, st.text(min_size=1))
def test_who_is_added_takes_only_what_becomes_its_own(keys, owners, added):
    for key in keys:
        assert owner_of(key, [*owners, added]) in (owner_of(key, owners), added)


@given(st.lists(st.text(), max_size=20), names.filter(lambda names: len(names) > 1), st.data())
def test_who_is_lost_leaves_only_its_own_to_others(keys, owners, data):
    lost = data.draw(st.sampled_from(owners))
    left = [owner for owner in owners if owner != lost]
    for key in keys:
        before, after = owner_of(key, owners), owner_of(key, left)
        assert after != lost and before in (after, lost)


@given(st.text(), st.text())
def test_a_weight_has_64_bits(key, owner):
    assert 0 <= weight(key, owner) < 2**64


def test_without_owners_there_is_none():
    with pytest.raises(ValueError):
        owner_of("a", [])


@pytest.mark.parametrize("number", SETS)
def test_no_owner_has_a_tenth_more_than_its_share_of_10_000(number):
    """Imbalance: how much more than the mean the largest share is."""
    counts = Counter(owned(10_000, owners_of(number)).values())
    assert max(counts.values()) / (10_000 / NUM_OWNERS) - 1 < 0.10


def test_what_a_change_moves_is_within_5_percent_of_the_ideal_share_of_10_000():
    """On the mean of changes: of a single one, shares of so few documents scatter by as much."""
    owners = owners_of(0)
    before = owned(10_000, owners)
    added = [f"added {i}" for i in range(8)]
    moves = sum(
        owner_of(key, [owner, new]) == new for key, owner in before.items() for new in added
    )
    assert moves / 8 / 10_000 == pytest.approx(1 / (NUM_OWNERS + 1), rel=0.05)
    for lost in owners[:2]:
        left = [owner for owner in owners if owner != lost]
        moved = sum(owner_of(key, left) != owner for key, owner in before.items())
        assert moved == sum(owner == lost for owner in before.values())


@pytest.mark.slow
def test_what_any_change_moves_is_within_5_percent_of_the_ideal_share_of_50_000():
    owners = owners_of(0)
    before = owned(50_000, owners)
    for share in Counter(before.values()).values():  # which moves when its owner is lost
        assert share / 50_000 == pytest.approx(1 / NUM_OWNERS, rel=0.05)
    moved = sum(owner_of(key, [owner, "added"]) == "added" for key, owner in before.items())
    assert moved / 50_000 == pytest.approx(1 / (NUM_OWNERS + 1), rel=0.05)
