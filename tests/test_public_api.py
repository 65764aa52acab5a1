"""What users import, and what importing it costs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import guardrails
from guardrails import errors, events, fleet
from guardrails._util import identity
from guardrails._util.lazy import on_use


@pytest.mark.parametrize("module", [guardrails, errors, events, fleet], ids=lambda module: module.__name__)
def test_public_names_are_listed_and_there(module):
    """``__all__`` is sorted, complete and importable."""
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'protectt'"):
        module.protectt  # noqa: B018


def test_public_names_are_in_dir_before_they_are_used():
    """An interactive shell completes them."""
    code = "import guardrails; print(set(guardrails.__all__) - set(dir(guardrails)))"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "set()\n"
    assert set(guardrails.__all__) <= set(dir(guardrails))


def test_public_names_are_documented():
    """Every public class and function says what it is."""
    for module in (guardrails, fleet):
        for name in module.__all__:
            assert getattr(module, name).__doc__


def test_import_needs_nothing_and_starts_nothing():
    """``import guardrails`` pulls in no database library, no pybreaker, starts no thread and is quick."""
    code = (
        "import sys, threading, time; began = time.perf_counter(); import guardrails; "
        "took = time.perf_counter() - began; "
        "heavy = {'sqlalchemy', 'redis', 'starlette', 'pybreaker', 'tenacity', 'asyncio'}; "
        "heavy &= set(sys.modules); "
        "print(heavy or 'nothing', threading.active_count(), took < 2)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.split() == ["nothing", "1", "True"]


def test_a_name_whose_library_is_missing_says_what_to_install():
    """An extra that is not there is told by the extra's name; without one the import's own error stays."""
    homes = {"Thing": "guardrails._no_such_module"}
    with pytest.raises(ImportError, match="pip install 'guardrails-db\\[thing\\]'") as told:
        on_use("guardrails", homes, "Thing is missing: pip install 'guardrails-db[thing]'")("Thing")
    assert isinstance(told.value.__cause__, ModuleNotFoundError)
    with pytest.raises(ModuleNotFoundError, match="_no_such_module"):
        on_use("guardrails", homes)("Thing")
    with pytest.raises(AttributeError, match="module 'guardrails' has no attribute 'Other'"):
        on_use("guardrails", homes)("Other")


def test_errors_survive_a_process_boundary():
    """Errors pickle with all they know, so that worker pools can hand them on."""
    import pickle  # noqa: PLC0415 - here alone

    for error in (
        errors.CircuitOpenError("db", "circuit_open", 1.5),
        errors.BulkheadFullError("db", "queue_timeout"),
        errors.CommitUnknownError("db", 0.5),
        errors.ConfigurationError("timeout must be ..."),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_mixed_installation_is_refused(tmp_path):
    """With guardrails-ai's files among ours nothing starts, and the message says what to do."""
    identity.check(tmp_path)
    (tmp_path / "guard.py").touch()
    with pytest.raises(ImportError, match="pip uninstall guardrails-ai guardrails-db"):
        identity.check(tmp_path)
