"""Systems without a mark that a fork clears, and the threads of a child in which no hook was run."""

from __future__ import annotations

import mmap
import os
import threading

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


@pytest.fixture
def child(monkeypatch):
    """The state of a child in which no hook was run; its reset is given by the test."""
    mark = [0]
    monkeypatch.setattr(fork, "_mark", mark)
    monkeypatch.setattr(fork, "_notices", {})
    return mark


def test_the_first_thread_of_such_a_child_resets_it_and_the_others_wait_for_that(monkeypatch, child):
    resets, begun, goes_on = [], threading.Event(), threading.Event()

    def reset():
        resets.append(threading.get_ident())
        begun.set()
        goes_on.wait(30)
        child[0] = 1

    monkeypatch.setattr(fork, "_in_child", reset)
    monkeypatch.setattr(fork, "_LOCK_TIMEOUT", 30)
    first, second = (threading.Thread(target=fork.check_process) for _ in range(2))
    first.start()
    begun.wait(30)
    second.start()
    second.join(0.02)
    assert second.is_alive(), "a lock that it took now would be replaced"
    goes_on.set()
    first.join(30)
    second.join(30)
    fork.check_process()
    assert resets == [first.ident]


def test_a_reset_that_hangs_holds_up_no_other_thread_for_ever(monkeypatch, child):
    monkeypatch.setattr(fork, "_LOCK_TIMEOUT", 0.01)
    fork._notices[os.getpid()] = 0  # another thread's number
    fork.check_process()
    assert child == [0]


class Broken:
    """Something of ours that cannot be reset."""

    def reset_in_child(self):
        raise OSError("too many open files")


def test_what_cannot_be_reset_prevents_no_other_reset_and_is_logged(monkeypatch, child, caplog):
    def broken():
        raise OSError("too many open files")

    done, good = [], fork.ForkedLock()
    lock = good.lock
    monkeypatch.setattr(fork, "fork_aware", lambda: [Broken(), good])
    monkeypatch.setattr(fork, "_child_callbacks", [broken, lambda: done.append(True)])
    fork.check_process()
    assert child == [1], "else each later call would repeat it"
    assert good.lock is not lock
    assert done == [True]
    assert caplog.messages == ["a part of the library could not be reset in a child process"] * 2
    fork.check_process()
    assert done == [True]
