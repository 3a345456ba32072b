"""Secrets in real replicas: they get there, and nowhere else."""

from pathlib import Path

import pytest
from replica_harness import LauncherProcess, eventually, spec_for

from cortex.wire.framing import close_all, receive_frame
from cortex.wire.launch import AskListener

VALUE = "hunter2-in-full-length"
SECRETS = {"TOKEN": VALUE, "KEY": "-----BEGIN-----\nzyxwvu9876543210\n-----END-----"}
IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"
ROW = [[5.2, 3.6, 1.4, 0.3]]

QUOTING = """\
import logging, os, sys
print("at import", os.environ["TOKEN"])
def pre_inference(sample, metadata):
    print("printed", os.environ["TOKEN"])
    logging.warning("logged %s", os.environ["TOKEN"])
    sys.stderr.write(os.environ["KEY"] + "\\n")
    raise ValueError("cannot fetch https://x/?token=" + os.environ["TOKEN"])
"""


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file() and "project" not in file.parts)


def memory_of(pid: int) -> bytes:
    """Everything that a process can write to."""
    content = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if "w" in rights:
                begin, end = (int(part, 16) for part in span.split("-"))
                try:
                    memory.seek(begin)
                    content.append(memory.read(end - begin))
                except OSError:  # the kernel's own pages
                    pass
    return b"".join(content)


def test_a_handler_finds_secrets_in_its_environment(start):
    source = (
        "import os\ndef post_inference(p, m):\n    return os.environ['TOKEN'] + os.environ['KEY'] + os.environ['PLAIN']"
    )
    replica = start(source, secrets=SECRETS, env={"PLAIN": "plain", "TOKEN": "overridden"})
    assert replica.post(ROW).json == VALUE + SECRETS["KEY"] + "plain"


def test_a_secret_that_users_code_quotes_is_masked_in_what_is_written_and_answered(start, folder):
    replica = start(QUOTING, secrets=SECRETS)
    answer = replica.post(ROW)
    assert answer.status == 500
    assert "cannot fetch https://x/?token=****" in answer.json["message"]
    texts = [line.text for line in replica.lines()]
    assert "at import ****" in texts
    assert "printed ****" in texts
    assert any(text.endswith("logged ****") for text in texts)
    assert any("ValueError: cannot fetch https://x/?token=****" in text for text in texts)
    replica.drain()
    eventually(lambda: not replica.alive(), "it has ended, and writes nothing any more")
    written = everything_in(folder)
    assert VALUE.encode() not in written
    assert b"zyxwvu9876543210" not in written


def test_a_replica_that_dies_quoting_a_secret_says_so_without_it(start):
    replica = start("import os\nraise RuntimeError(os.environ['TOKEN'])", secrets=SECRETS, wait=False)
    eventually(lambda: not replica.alive(), "it ends")
    problem = replica.last_words().problem
    assert problem is not None
    assert problem.message.endswith("RuntimeError: ****")
    assert VALUE not in problem.traceback


def test_an_inspection_has_secrets_and_tells_none(shared_launcher, folder):
    source = "import os\nassert os.environ['TOKEN'] == 'x', os.environ['TOKEN']"
    report = shared_launcher.link.inspect(spec_for(folder, IRIS, handler_source=source), secrets=SECRETS)
    (problem,) = report.problems
    assert "AssertionError: ****" in problem.message
    assert VALUE not in repr(report)


@pytest.mark.slow
def test_a_launcher_never_has_secrets_in_memory_which_all_its_children_would_share(
    own_launcher: LauncherProcess, folder
):
    first = own_launcher.fork(spec_for(folder, IRIS, replica="t.a.0.1"), secrets=SECRETS).ready()
    own_launcher.link.inspect(spec_for(folder, IRIS, replica="t.a.0.2"), secrets=SECRETS)
    other = own_launcher.fork(spec_for(folder, IRIS, replica="t.b.0.1")).ready()
    assert VALUE.encode() in memory_of(first.pid)
    assert VALUE.encode() not in memory_of(own_launcher.pid)
    assert VALUE.encode() not in memory_of(other.pid)


def test_a_replica_that_hands_out_its_slot_tells_no_secret(start):
    replica = start(secrets=SECRETS)
    with replica.control() as control:
        control.send(AskListener())
        while not (answer := receive_frame(control.sock))[1]:
            assert VALUE.encode() not in answer[0]  # pushed to everybody
    close_all(answer[1])
    assert VALUE.encode() not in answer[0]
