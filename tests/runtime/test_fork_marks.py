"""Systems without a mark that a fork clears."""

from __future__ import annotations

import mmap
import os

import pytest

from guardrails._runtime import fork


@pytest.mark.parametrize("missing", ["the flag", "the call"])
def test_process_numbers_mark_a_child_where_memory_cannot(monkeypatch, missing):
    """On other systems than Linux; the mark is set again once the child has been reset."""
    if missing == "the flag":
        monkeypatch.delattr(mmap, "MAP_ANONYMOUS")
    else:
        monkeypatch.setattr(fork, "_WIPE_ON_FORK", -1)
    mark, parent = fork._new_mark(), os.getpid()
    assert isinstance(mark, fork._Mark)
    assert mark[0]
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert not mark[0]
    mark[0] = 1
    assert mark[0]
