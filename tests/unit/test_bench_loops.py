"""The closed loops and the processes they run in, with signers that only wait."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from hsmcore_bench.harness.process import Child, ChildError, MissingError, child_environment
from hsmcore_bench.suite.child.protocol import Job, check_message, distinct_messages, one_at_a_time
from hsmcore_bench.suite.child.tasks import arrive, burst, saturate
from hsmcore_bench.suite.child.threads import threaded_slice
from hsmcore_bench.suite.devices import DEVICES, mean_microseconds, punctual


class TestTasks:
    def test_keeps_the_asked_number_in_flight_and_counts_every_call(self):
        now, most, calls, seen = 0, 0, 0, set()

        async def sign(message):
            nonlocal now, most, calls
            now, calls = now + 1, calls + 1
            most = max(most, now)
            assert message not in seen
            seen.add(message)
            await asyncio.sleep(0.002)
            seen.discard(message)
            now -= 1

        pool = distinct_messages(32, 20)
        figures = asyncio.run(saturate(sign, [pool[i::8] for i in range(8)], 0.1, watch_lag=True))
        assert most == 8
        assert figures["signatures"] == calls >= 8
        assert figures["latency_ns"]["p50"] >= 2e6
        assert 0.1 <= figures["seconds"] < 10.0
        assert figures["lag_ns"]["p99"] >= 0

    def test_untimed_callers_count_too(self):
        calls = 0

        async def sign(_message):
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)

        figures = asyncio.run(saturate(sign, [[b"m"]] * 16, 0.02, timed_every=8))
        assert figures["signatures"] == calls
        assert figures["lag_ns"] is None

    def test_a_batch_weighs_as_many_signatures_as_it_holds(self):
        async def sign_many(_messages):
            await asyncio.sleep(0.001)

        figures = asyncio.run(saturate(sign_many, [[[b"m"] * 256]], 0.02, weight=256))
        assert figures["signatures"] % 256 == 0
        assert figures["signatures"] > 0

    def test_lag_is_seen_when_the_loop_is_blocked(self):
        async def sign(_message):
            time.sleep(0.01)  # noqa: ASYNC251 - blocking is the point
            await asyncio.sleep(0)

        figures = asyncio.run(saturate(sign, [[b"m"]] * 4, 0.1, watch_lag=True))
        assert figures["lag_ns"]["p99"] > 5e6

    def test_calls_that_never_suspend_still_end(self):
        async def sign(_message):
            pass

        figures = asyncio.run(burst(sign, [b"a", b"b"], 0.02))
        assert figures["signatures"] > 0
        assert figures["signatures"] % 2 == 0
        assert asyncio.run(saturate(sign, [[b"a"]], 0.02))["seconds"] < 10.0

    def test_an_error_ends_the_slice(self):
        async def sign(_message):
            raise RuntimeError("no signature")

        with pytest.raises(RuntimeError, match="no signature"):
            asyncio.run(saturate(sign, [[b"m"]], 1.0))


class TestArrivals:
    """Requests that come at random, whatever becomes of the earlier ones."""

    def test_as_many_come_as_should(self):
        now, most = 0, 0

        async def sign(_message):
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1

        figures = asyncio.run(arrive(sign, [b"a", b"b"], 0.5, 400.0))
        assert 150 < figures["signatures"] < 250  # 200 ± 3.5 standard deviations of a Poisson process
        assert most > 2, "no call waits for the one before"
        assert figures["latency_ns"]["p50"] >= 0.02e9

    def test_a_latency_counts_from_when_a_request_was_due(self):
        """Each request blocks the loop for longer than the next one takes to arrive: the last ones are late."""

        async def sign(_message):
            time.sleep(0.01)  # noqa: ASYNC251 - blocking is the point

        figures = asyncio.run(arrive(sign, [b"a"], 0.2, 200.0))
        assert figures["latency_ns"]["p99"] > 0.1e9

    @pytest.mark.parametrize(("punctual", "shortest"), [(True, 0.0), (False, 0.001)])
    def test_a_loop_that_need_not_be_punctual_never_spins(self, punctual, shortest, monkeypatch):
        """uvloop makes a timer of less than half a millisecond none at all."""
        sleep, slept = asyncio.sleep, []

        async def noted(delay):
            slept.append(delay)
            await sleep(delay)

        async def sign(_message):
            pass

        monkeypatch.setattr(asyncio, "sleep", noted)
        figures = asyncio.run(arrive(sign, [b"a"], 0.2, 1000.0, punctual=punctual))
        assert figures["signatures"] > 100
        assert min(slept) == shortest

    def test_an_error_ends_it(self):
        async def sign(_message):
            raise RuntimeError("no signature")

        with pytest.raises(RuntimeError, match="no signature"):
            asyncio.run(arrive(sign, [b"a"], 0.1, 100.0))


def test_the_token_is_opened_in_turn(tmp_path):
    lock, seen = tmp_path / "turn", []

    def user(name):
        with one_at_a_time(str(lock)):
            seen.append(name)
            time.sleep(0.01)
            seen.append(name)

    threads = [threading.Thread(target=user, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seen[i] for i in range(0, 8, 2)] == [seen[i] for i in range(1, 8, 2)]
    with one_at_a_time(""):
        assert sorted(set(seen)) == [0, 1, 2, 3]


class TestThreads:
    def test_counts_the_calls_of_all_threads(self):
        calls = []
        figures = threaded_slice([lambda: (time.sleep(0.002), calls.append(1))] * 3, 0.05)
        assert figures["signatures"] == len(calls) >= 3
        assert figures["latency_ns"]["p50"] >= 2e6
        assert figures["seconds"] >= 0.05

    def test_an_error_is_raised(self):
        with pytest.raises(ZeroDivisionError):
            threaded_slice([lambda: 1 // 0], 0.05)


class TestMessages:
    def test_the_check_message_counts_up(self):
        assert check_message(258) == bytes(range(256)) + b"\x00\x01"

    def test_distinct_messages_are(self):
        made = distinct_messages(1000, 5)
        assert len(set(made)) == 1000
        assert {len(message) for message in made} == {5}
        with pytest.raises(ValueError, match="4 bytes"):
            distinct_messages(2, 3)

    def test_a_job_survives_its_way_through_argv(self):
        job = Job(
            "sign", "/m.so", "tökén", 'a"b', "ed25519", 64, 2, 1, 200, 1, True, "softhsm", "process", "always", "/s"
        )
        assert Job.from_json(job.to_json()) == job


class TestDevices:
    @pytest.mark.parametrize(
        ("latency", "mean"),
        [
            ({"kind": "constant", "microseconds": 5000}, 5000.0),
            ({"kind": "lognormal", "meanMicroseconds": 4000, "sigma": 0.25}, 4000.0),
            ({"kind": "lognormal", "medianMicroseconds": 1000, "sigma": 1.0, "offsetMicroseconds": 5}, 1653.7),
        ],
    )
    def test_means(self, latency, mean):
        assert mean_microseconds(latency) == pytest.approx(mean, abs=0.1)

    def test_a_latency_whose_mean_is_not_known_is_refused(self):
        with pytest.raises(ValueError, match="no mean is known"):
            mean_microseconds({"kind": "uniform", "minMicroseconds": 1, "maxMicroseconds": 2})

    @pytest.mark.parametrize(("name", "ceiling"), [("x2", 3000.0), ("5ms", 25_600.0), ("5ms-16", 3200.0)])
    def test_ceilings_are_servers_over_the_mean_time(self, name, ceiling):
        assert DEVICES[name].ceiling(PROFILES) == pytest.approx(ceiling)
        assert DEVICES["transparent"].ceiling(PROFILES) is None

    def test_children_sleep_exactly_and_this_process_as_before(self):
        slack = Path("/proc/self/timerslack_ns")
        before = slack.read_text()
        read = [sys.executable, "-c", f"print(open('{slack}').read().strip())"]
        with punctual():
            inside = subprocess.run(read, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert (inside.strip(), slack.read_text()) == ("1", before)


PROFILES = Path(__file__).parents[2] / "bench" / "native" / "chaos" / "profiles"


def child(script: str) -> Child:
    return Child([sys.executable, "-c", textwrap.dedent(script)], child_environment({}))


ECHO = """
    import sys
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        print('{"said": "%s"}' % line.strip(), flush=True)
"""


class TestChild:
    def test_answers_and_ends_when_its_input_closes(self):
        with child(ECHO) as echo:
            assert echo.ready() == {"ready": True}
            assert echo.ask("run 1", 10) == {"said": "run 1"}
            assert echo.run(0.25) == {"said": "run 0.25"}
            assert 0 < echo.cpu_seconds() < 60
            pid = echo.pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        echo.close()

    def test_the_processor_time_of_its_own_children_counts(self):
        script = """
            import subprocess, sys
            burn = "import time\\nwhile time.process_time() < 0.3: pass"
            print('{}', flush=True)
            for line in sys.stdin:
                if line == "ended\\n":
                    subprocess.run([sys.executable, "-c", burn])
                else:
                    living = subprocess.Popen([sys.executable, "-c", burn + "\\nprint(1, flush=True)\\ntime.sleep(60)"],
                                              stdout=subprocess.PIPE)
                    living.stdout.readline()
                print('{}', flush=True)
            living.kill()
        """
        with child(script) as parent:
            parent.ready()
            for kind in ("ended", "living"):
                before = parent.cpu_seconds()
                parent.ask(kind, 30)
                assert 0.28 < parent.cpu_seconds() - before < 20

    def test_last_words_are_in_the_error(self):
        with child("raise SystemExit('C_Login: CKR 0xA0')") as broken, pytest.raises(ChildError, match="CKR 0xA0"):
            broken.ready()

    def test_silence_is_an_error(self):
        with child(ECHO) as echo:
            echo.ready()
            with pytest.raises(ChildError, match="no answer within 0 s"):
                echo.answer(0.05)

    def test_one_that_died_between_two_questions(self):
        with child("print('{}', flush=True)") as brief:
            brief.ready()
            brief._process.wait(10)
            with pytest.raises(ChildError, match="ended"):
                brief.ask("run 1", 10)

    def test_a_missing_library_has_an_error_of_its_own(self):
        script = """print('{"missing": "No module named x"}', flush=True)"""
        with child(script) as lacking, pytest.raises(MissingError, match="No module named x"):
            lacking.ready()

    def test_dies_with_the_process_that_started_it(self):
        script = """
            import subprocess, sys
            code = (
                "from hsmcore_bench.harness.parent import die_with_parent\\n"
                "die_with_parent()\\n"
                "print('up', flush=True)\\n"
                "import time; time.sleep(60)"
            )
            inner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            inner.stdout.readline()
            print(inner.pid, flush=True)
            import os; os._exit(0)
        """
        outer = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=child_environment({}),
            stdout=subprocess.PIPE,
            check=True,
        )
        pid = int(outer.stdout)
        deadline = time.monotonic() + 10
        while _alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
