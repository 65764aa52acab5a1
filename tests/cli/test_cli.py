"""The ``guardrails`` command as a whole: what it imports, what it says without its extras, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import guardrails
from support.paths import ROOT

NOWHERE = "postgresql://u:p@127.0.0.1:1/x"
RUN = "import sys; sys.argv = ['guardrails', *sys.argv[1:]]; from guardrails.cli import main; {}main()"


def run(*words, before="", path=str(ROOT), **more):
    """Runs the command in a process of its own; ``before`` is code that runs when all but main() is done."""
    env = os.environ | {"PYTHONPATH": path} | more
    command = [sys.executable, "-c", RUN.format(before), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=env)


def without(tmp_path, *modules):
    """A path on which these modules cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {modules!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return os.pathsep.join([str(tmp_path), str(ROOT)])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "Keeps a web service up"),
        (["--version"], 0, f"guardrails {guardrails.__version__}\n"),
        (["size", "--rate", "5", "--hold", "0.1"], 0, "pool_size="),
        (["watch", "127.0.0.1:1", "--json", "--times", "1"], 1, "it does not answer"),
        (["diagnose", NOWHERE], 1, "it does not answer"),
    ],
)
def test_commands_without_a_table_work_without_rich(tmp_path, words, code, said):
    done = run(*words, path=without(tmp_path, "rich"))
    assert (done.returncode, done.stderr, said in done.stdout) == (code, "", True)


def test_a_table_without_rich_names_the_extra(tmp_path):
    done = run("watch", "127.0.0.1:1", path=without(tmp_path, "rich"))
    assert done.returncode == 2
    assert done.stderr == "guardrails: this needs: pip install 'guardrails-db[cli]'\n"


def test_without_click_each_command_names_the_extra(tmp_path):
    for words in ([], ["--help"], ["size"]):
        done = run(*words, path=without(tmp_path, "click", "rich"))
        assert done.returncode == 1
        assert done.stderr == "guardrails: the command line needs: pip install 'guardrails-db[cli]'\n"


@pytest.mark.parametrize(
    ("words", "extra"), [(["diagnose", NOWHERE], "sqlalchemy"), (["diagnose", "redis://h"], "redis")]
)
def test_a_database_library_that_is_missing_is_named_by_its_extra(tmp_path, words, extra):
    done = run(*words, path=without(tmp_path, extra))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"guardrails: this needs: pip install 'guardrails-db[{extra}]'\n"


HEAVY = {
    "aiohttp",
    "asyncio",
    "http",
    "opentelemetry",
    "psycopg",
    "pybreaker",
    "redis",
    "rich",
    "sqlalchemy",
    "starlette",
    "tenacity",
}  # fmt: skip - one list


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "used"),
    [
        (["--version"], set()),
        (["size", "--rate", "5", "--hold", "0.1"], set()),
        (["demo", "--help"], set()),
        (["doctor", "--help"], set()),
        (["diagnose", "--help"], set()),
        (["watch", "127.0.0.1:1", "--json", "--times", "1"], {"http"}),
        (["watch", "127.0.0.1:1", "--times", "1"], {"http", "rich"}),
        # SQLAlchemy has asyncio's words at hand; psycopg its transports.
        (["diagnose", NOWHERE], {"sqlalchemy", "psycopg", "asyncio"}),
    ],
)
def test_a_command_imports_what_it_uses(words, used):
    """Of the heavy modules exactly those; each of them is a tenth of a second or more."""
    report = (
        "import atexit; atexit.register(lambda: print('\\n', *sys.modules, sep='\\n', file=sys.stderr)); "
    )
    done = run(*words, before=report)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert loaded & HEAVY <= used
    assert not used - {"asyncio", "http"} - loaded
    commands = {"demo", "diagnose", "doctor", "size", "watch"}
    others = {f"guardrails.cli.{name}" for name in commands - {words[0]}}
    assert not others & set(done.stderr.split())


INTERRUPT = (
    "import os, signal; left = [int(os.environ['AFTER'])]\n"
    "def hook(event, _):\n"
    "    if event == 'import':\n"
    "        left[0] -= 1\n"
    "        left[0] or os.kill(os.getpid(), signal.SIGINT)\n"
    "sys.addaudithook(hook)\n"
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", ["demo", "diagnose", "doctor", "size", "watch", "--help"])
def test_ctrl_c_while_modules_are_imported_is_quiet(tmp_path, command):
    """At the first import and at later ones: nothing is printed, and the code is 130, every time."""
    words = {
        "demo": ["--headless", "--seconds", "20"],
        "diagnose": [NOWHERE],
        "doctor": ["--app", "json:loads"],
        "size": ["--rate", "5", "--hold", "0.1"],
        "watch": ["127.0.0.1:1", "--times", "1"],
        "--help": [],
    }[command]
    interrupted = 0
    for after in (1, 2, 9, 40, 120, 300):
        done = run(command, *words, before=INTERRUPT, AFTER=str(after), TMPDIR=str(tmp_path))
        if done.returncode != 130:
            break
        interrupted += 1
        assert (done.stdout, done.stderr) == ("", ""), after
    assert done.returncode in {0, 1, 2, 130}
    assert "Traceback" not in done.stderr
    assert interrupted >= 3


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "words", [["watch", "{}"], ["watch", "{}", "--json"], ["doctor", "--app", "slow:app"]]
)
def test_ctrl_c_at_work_exits_with_130_and_no_traceback(tmp_path, words):
    """While it waits for an answer or for a lifespan, whose end is reached."""
    import socket  # noqa: PLC0415 - here alone

    (tmp_path / "slow.py").write_text(
        "import asyncio, pathlib\n"
        "async def app(scope, receive, send):\n"
        "    pathlib.Path('waits').touch()\n"
        "    try:\n"
        "        await asyncio.sleep(60)\n"
        "    finally:\n"
        "        pathlib.Path('ended').touch()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "guardrails.cli",
                *[word.format(address) for word in words],
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        with process:
            if words[0] == "watch":
                listener.settimeout(60)
                peer = listener.accept()[0]
            else:
                while not (tmp_path / "waits").exists():
                    assert process.poll() is None
                peer = None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            if peer is not None:
                peer.close()
    assert (process.returncode, out.strip(), err.strip()) == (130, "", "")
    assert (tmp_path / "ended").exists() == (words[0] == "doctor")


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    """As under nohup or in the background of a script."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + INTERRUPT.replace(
        "sys.addaudithook", "\nsys.addaudithook"
    )
    done = run("size", "--rate", "5", "--hold", "0.1", before=ignore, AFTER="9")
    assert (done.returncode, done.stderr) == (0, "")
