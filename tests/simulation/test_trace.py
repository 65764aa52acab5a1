"""Traces of calls: what is read, what a wrong row is told, and what a running service writes."""

from __future__ import annotations

import asyncio
import gzip
import threading
from pathlib import Path

import pytest

from guardrails._core.outcome import Outcome
from guardrails.errors import ConfigurationError
from guardrails.simulation import TraceWriter
from guardrails.simulation.trace import read_trace

HEAD = "moment,route,duration,outcome\n"


def trace_of(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return read_trace(path)


def test_a_trace_is_read_in_the_order_of_its_moments(tmp_path):
    trace = trace_of(tmp_path, HEAD + "12,b,0.5,failure\n10,a,4,success\n13.5,a,0.25,neutral\n")
    assert (list(trace.moments), list(trace.durations)) == ([0, 2, 3.5], [4, 0.5, 0.25])
    assert [trace.names[route] for route in trace.routes] == ["a", "b", "a"]
    assert list(trace.outcomes) == [Outcome.SUCCESS, Outcome.FAILURE, Outcome.NEUTRAL]
    assert (trace.start, trace.seconds, len(trace), trace.highest()) == (10, 4, 3, 2)
    assert trace.count() == {"success": 1, "failure": 1, "neutral": 1}


def test_columns_may_come_in_any_order_beside_others(tmp_path):
    trace = trace_of(tmp_path, 'Outcome,user,duration,route,moment\n\nsuccess,7,1,"a, b",2\n')
    assert (trace.names, trace.start, list(trace.durations)) == (["a, b"], 2, [1])


def test_moments_may_be_times_of_the_calendar(tmp_path):
    trace = trace_of(
        tmp_path, HEAD + "2026-11-30T02:14:07Z,a,1, Success\n2026-11-30T03:14:08.5+01:00,a,1,abandoned\n"
    )
    assert (trace.when(0), list(trace.moments)) == ("2026-11-30 02:14:07", [0, 1.5])


def test_a_moment_without_a_calendar_is_shown_in_seconds(tmp_path):
    assert trace_of(tmp_path, HEAD + "12,a,1,success\n").when(2.25) == "14.2 s"


def test_a_packed_trace_is_read(tmp_path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress((HEAD + "1,a,1,success\n").encode()))
    assert len(read_trace(path)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header must name the columns moment, route, duration, outcome; missing: moment"),
        ("moment,route\n1,a\n", "missing: duration, outcome, got 'moment,route'"),
        (HEAD, "there are no calls in it"),
        (HEAD + "1,a,1,success\nsoon,a,1,success\n", "line 3: moment must be a number of seconds, or a time"),
        (HEAD + "nan,a,1,success\n", "line 2: moment must be a number of seconds, or a time"),
        (HEAD + "1,a,-1,success\n", "line 2: duration must be a number of seconds from 0 to 1e+06, got '-1'"),
        (HEAD + "1,a,nan,success\n", "line 2: duration must be a number of seconds from 0"),
        (
            HEAD + "1,a,x,ok\n",
            "duration must be a number of seconds from 0 to 1e+06, got 'x'; outcome must be one",
        ),
        (HEAD + "1,a,1,ok\n", "outcome must be one of success, failure, abandoned, neutral, got 'ok'"),
        (HEAD + "1,a,1\n", "line 2: row must be at least 4 values, as the header has, got '3 values'"),
        (HEAD + "x,a,1,success\n" * 9, "and more"),
        (HEAD + "".join(f"1,r{n},1,success\n" for n in range(10_001)), "more than 10000 routes"),
    ],
)
def test_a_wrong_row_is_named_with_its_line_column_value_and_what_is_allowed(tmp_path, text, message):
    with pytest.raises(ConfigurationError) as raised:
        trace_of(tmp_path, text)
    assert message in str(raised.value)


@pytest.mark.parametrize(("name", "data"), [("t.csv", b"\xff\xfe\x00"), ("t.csv.gz", b"moment")])
def test_a_file_that_is_no_text_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match="no CSV file in UTF-8"):
        read_trace(tmp_path / name)


def test_a_damaged_packed_file_is_refused(tmp_path):
    packed = bytearray(gzip.compress(HEAD.encode() + b"1,a,1,success\n" * 500, mtime=0))
    packed[12:20] = b"\xff" * 8
    (tmp_path / "t.csv.gz").write_bytes(packed)
    with pytest.raises(ConfigurationError, match="no CSV file in UTF-8"):
        read_trace(tmp_path / "t.csv.gz")


def test_a_last_call_of_no_duration_is_one_at_once(tmp_path):
    assert trace_of(tmp_path, HEAD + "0,a,0.5,success\n1,a,0,success\n").highest() == 1
    assert trace_of(tmp_path, HEAD + "0,a,0,success\n").highest() == 1


# --- writing ---------------------------------------------------------------------------------------


def test_a_service_writes_what_simulate_reads(tmp_path):
    with TraceWriter(tmp_path / "t.csv") as writer:
        with writer.call("GET /a"):
            pass
        with pytest.raises(ZeroDivisionError), writer.call("GET /a"):
            raise ZeroDivisionError
        with pytest.raises(asyncio.CancelledError), writer.call("b, c"):
            raise asyncio.CancelledError
        writer.add(5.0, "b, c", 0.5, "neutral")
    writer.close()
    trace = read_trace(tmp_path / "t.csv")
    assert trace.count() == {"success": 1, "failure": 1, "abandoned": 1, "neutral": 1}
    assert sorted(trace.names) == ["GET /a", "b, c"]
    assert trace.start == 5.0


def test_a_second_run_appends_to_the_trace(tmp_path):
    for moment in (1, 2):
        with TraceWriter(tmp_path / "t.csv") as writer:
            writer.add(moment, "a", 1)
    assert len(read_trace(tmp_path / "t.csv")) == 2


def test_a_file_that_is_no_trace_is_left_alone(tmp_path):
    (tmp_path / "t.csv").write_text("precious\n")
    with pytest.raises(ConfigurationError, match="the first line of the file must be moment,route"):
        TraceWriter(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "precious\n"


def test_processes_that_start_together_write_one_trace(tmp_path):
    """The first line is in the file at once; one that is there twice all the same is skipped."""
    with TraceWriter(tmp_path / "t.csv") as first, TraceWriter(tmp_path / "t.csv") as second:
        first.add(1.0, "a", 0.1)
        second.add(2.0, "b", 0.1)
    assert (tmp_path / "t.csv").read_text().count("moment") == 1
    assert len(trace_of(tmp_path, HEAD + "1,a,1,success\n" + HEAD + "2,a,1,success\n", "u.csv")) == 2


def test_a_route_that_is_no_text_breaks_no_call(tmp_path):
    with TraceWriter(tmp_path / "t.csv") as writer, writer.call("GET /caf\udce9"):
        pass
    assert read_trace(tmp_path / "t.csv").names == ["GET /caf\\udce9"]


def test_an_unknown_outcome_is_refused(tmp_path):
    with (
        TraceWriter(tmp_path / "t.csv") as writer,
        pytest.raises(ConfigurationError, match="outcome must be one"),
    ):
        writer.add(1, "a", 1, "ok")


def test_a_full_disk_breaks_no_call(tmp_path):
    writer = TraceWriter(tmp_path / "t.csv")
    writer._file.close()
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    writer._file = Path("/dev/full").open("w")  # noqa: SIM115 - the writer closes it
    writer.add(1, "a", 1)
    writer.close()
    assert isinstance(writer.error, OSError)
    with writer.call("a"):
        pass
    writer.close()


def test_threads_share_one_writer(tmp_path):
    with TraceWriter(tmp_path / "t.csv") as writer:

        def work():
            for moment in range(200):
                writer.add(moment, "a", 0.1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_trace(tmp_path / "t.csv")) == 800
