"""Raises an exception wherever Python lets a signal handler raise one, one place after the other.

A handler runs between two bytecodes, but not between any two: the interpreter looks for signals at a
function's start, at a jump back, and after a call into C. A call of a Python function is none; its start is.
So it is in CPython 3.11, 3.12 and 3.13; after some calls with a star 3.11 alone looks, and all are tried.
"""

from __future__ import annotations

import dis
import gc
import itertools
import pathlib
import sys
from functools import partial

from support.paths import PACKAGE

OURS = str(PACKAGE)
JUMPS_BACK = {code for name, code in dis.opmap.items() if "BACKWARD" in name and "NO_INTERRUPT" not in name}
CALLS = {dis.opmap[name] for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX") if name in dis.opmap}
SPREADING_CALL = dis.opmap["CALL_FUNCTION_EX"]
RESUME = dis.opmap["RESUME"]
SHOWS_OPCODES_LATE = sys.version_info >= (3, 13)
"""A function shows its opcodes from its second traced call on. So there is a rehearsal."""

AWAITING = 2
"""From this argument on, RESUME goes on after an await, where nobody looks for signals."""


class Interruption(BaseException):
    """As KeyboardInterrupt, but surely ours."""


def interrupt():
    raise Interruption


class Interrupter:
    """Does something at the n-th place of a function in the library where something else can come between.

    Attributes:
        hit: The file and the function where that was, or None when the call was over before.
    """

    def __init__(self, number, act=interrupt):
        self._number, self._left, self._act = number, sys.maxsize, act
        self._before = {}
        self.hit = None

    def run(self, rehearse, fn):
        """Calls the function, and lets only the interruption out of it that was made here.

        Without the collector of garbage: what it ends in the library would be one more place, by chance.

        Args:
            rehearse: Called before, and not interrupted; None leaves it out.
            fn: The function.
        """
        tracing, collects = sys.gettrace(), gc.isenabled()
        gc.disable()
        sys._getframe().f_trace_opcodes = True  # from 3.12 on, settrace asks then whether anybody wants them
        sys.settrace(self._on_call)
        try:
            if rehearse is not None:
                rehearse()
            self._left = self._number
            fn()
        except Interruption:
            assert self.hit is not None
        finally:
            sys.settrace(tracing)
            if collects:
                gc.enable()

    def _on_call(self, frame, event, arg):
        caller = frame.f_back
        if self._before.get(caller) != SPREADING_CALL and frame.f_code.co_name != "__init__":
            self._before[caller] = None  # one Python function called another: no look at its return
        if self.hit is not None or not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code, at = frame.f_code.co_code, frame.f_lasti
        begins = at >= 0 and code[at] == RESUME and code[at + 1] < AWAITING
        self._before[frame] = RESUME if begins else None
        return self._on_event

    def _on_event(self, frame, event, arg):
        if self.hit is not None:
            return None
        if event == "opcode":
            self._on_opcode(frame)
        elif event == "exception":
            self._before[frame] = None  # what raised did not return
        return self._on_event

    def _on_opcode(self, frame):
        before = self._before.get(frame)
        self._before[frame] = frame.f_code.co_code[frame.f_lasti]
        if before == RESUME or before in CALLS or before in JUMPS_BACK:
            if self._left == 0:
                self.hit = pathlib.Path(frame.f_code.co_filename).name, frame.f_code.co_name
                self._act()
            self._left -= 1


def interrupted_everywhere(make, fn):
    """Makes a thing and interrupts a function of it, at each place in turn; yields where, and the thing."""
    return _everywhere(make, fn, lambda thing: interrupt())


def switched_everywhere(make, fn, meanwhile):
    """Makes a thing, and lets another thread have its way at each place of a function of it in turn.

    The other thread runs at the places where a signal handler does: where the interpreter is handed on.
    """
    return _everywhere(make, fn, meanwhile)


def _everywhere(make, fn, act):
    for number in itertools.count():
        thing = make()
        # The first one imports what is imported late.
        rehearse = partial(fn, make()) if number == 0 or SHOWS_OPCODES_LATE else None
        interrupter = Interrupter(number, partial(act, thing))
        interrupter.run(rehearse, partial(fn, thing))
        if interrupter.hit is None:
            return
        yield interrupter.hit, thing
