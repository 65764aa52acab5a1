"""Blocks of `holding`: which one counts, and which pools hear of it."""

from __future__ import annotations

import contextvars

import pytest

from guardrails import ConfigurationError, holding
from guardrails._runtime.holding import current_block, on_enter


class Pool:
    """Keeps the blocks that it was told to extend to its connections."""

    def __init__(self):
        self.blocks = []

    def cover(self, block):
        """See `on_enter`."""
        self.blocks.append(block)


def test_the_innermost_block_counts_until_it_ends():
    assert current_block() is None
    with holding(60) as outer:
        with holding(5) as inner:
            assert current_block() is inner
        assert current_block() is outer
    assert current_block() is None


@pytest.mark.parametrize("context", [contextvars.copy_context, contextvars.Context])
def test_a_block_that_ends_in_another_context_no_longer_counts_where_it_began(context):
    block = holding(60)
    block.__enter__()
    context().run(block.__exit__, None, None, None)
    assert current_block() is None


def test_a_block_may_be_entered_again():
    block = holding(60)
    for _ in range(2):
        with block:
            assert block.ended is None
        assert block.ended is not None


def test_every_pool_hears_of_a_block_at_its_start():
    pool = Pool()
    on_enter(pool)
    with holding(60) as block:
        assert pool.blocks == [block]
    assert pool.blocks == [block]


@pytest.mark.parametrize("seconds", [0, -1, "5", None, float("nan"), True])
def test_seconds_that_are_no_time_are_refused_by_name(seconds):
    with pytest.raises(ConfigurationError, match="holding: seconds must be"):
        holding(seconds)
