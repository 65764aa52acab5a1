"""Imports the modules it is told, then runs commands in forks of itself, one by one; see support/forks.py."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pathlib
import runpy
import sys
import warnings


def run(order):
    """In the child: what ``python -W error -m MODULE ARGUMENTS`` does, without the start of Python."""
    os.chdir(order["folder"])
    for number, name in enumerate(["stdout", "stderr"], 1):
        os.dup2(os.open(pathlib.Path(order["output"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if order["environ"] is not None:
        os.environ.clear()
        os.environ.update(order["environ"])
    sys.path.insert(0, order["folder"])
    sys.argv = order["words"]
    warnings.simplefilter("error")
    code = 0
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
    """An order is a line of JSON; the answer is a line with the exit code."""
    sys.dont_write_bytecode = True  # two versions of a module in one second would look the same
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    sys.path.remove(str(pathlib.Path(__file__).parent))
    main()
