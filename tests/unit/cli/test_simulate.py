"""`cortex simulate`: a trace in, decisions with their reasons out."""

from __future__ import annotations

import json
from typing import Any

import pytest

STEP = "seconds,requests_per_second\n0,6\n20,200\n40,6\n"
OPTIONS = ("--cores", "2", "--cpu-time", "1ms")
CONFIG = """\
- kind: api
  name: iris
  model: model.onnx
  compute: {min_replicas: 2, init_replicas: 3, max_replicas: 5, downscale_window: 10s}
- kind: api
  name: other
  model: model.onnx
"""


@pytest.fixture
def trace(cortex: Any) -> Any:
    """Writes a trace."""

    def write(text: str = STEP, name: str = "trace.csv") -> str:
        (cortex.cwd / name).write_text(text)
        return name

    return write


def run(cortex: Any, *argv: str, **given: Any) -> Any:
    return cortex("simulate", "scaling", *argv, *OPTIONS, **given)


def test_each_change_is_shown_with_its_reason(cortex: Any, trace: Any) -> None:
    ran = run(cortex, trace())
    assert (ran.code, ran.out.splitlines()[0]) == (0, "api")
    assert "1 → 4" in ran.out
    assert "at most 3 replicas start at one time" in ran.out
    assert "fill" in ran.out
    assert "api: a request waits 49 of 50 ms in the handler: `concurrency: 16` or async" in ran.talk
    assert "0 refused" in ran.talk


def test_the_same_trace_gives_the_same_and_another_seed_other_chances(cortex: Any, trace: Any) -> None:
    name = trace()
    first, again, other = (run(cortex, name, "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_plot_is_plain_without_a_terminal(cortex: Any, trace: Any) -> None:
    piped, shown = run(cortex, trace()), run(cortex, trace(), tty=True)
    assert piped.out.split("\n\n")[0].replace("→", "").isascii()
    assert "█" in shown.out
    assert all(len(line) <= 80 for line in shown.out.splitlines() if "\x1b" not in line)


def test_bounds_and_windows_are_those_of_the_configuration(cortex: Any, trace: Any) -> None:
    (cortex.cwd / "cortex.yaml").write_text(CONFIG)
    ran = run(
        cortex,
        trace("0,6,iris\n20,200,iris\n40,6,iris\n60,0,iris\n120,0,iris\n"),
        "--config",
        "cortex.yaml",
        "-o",
        "json",
    )
    (api,) = json.loads(ran.out)["apis"]
    numbers = [decision["replicas"] for decision in api["decisions"]]
    assert (api["api"], api["decisions"][0]["before"], max(numbers), numbers[-1]) == ("iris", 3, 5, 2)
    assert "capped by max_replicas 5" in json.dumps(api["decisions"])


def test_a_trace_may_be_piped_in_and_a_program_reads_what_comes(cortex: Any) -> None:
    ran = run(cortex, "-", "-o", "json", stdin=b'{"seconds": 0, "requests_per_second": 5, "api": "a"}\n')
    found = json.loads(ran.out)
    assert (ran.code, found["cores"], found["apis"][0]["api"], found["apis"][0]["decisions"]) == (0, 2.0, "a", [])
    assert (len(found["apis"][0]["moments"]), found["apis"][0]["moments"][-1]["at_s"]) == (120, 60.0)


def test_nothing_to_change_is_said(cortex: Any, trace: Any) -> None:
    assert "the number of replicas stays as it is" in run(cortex, trace("0,1\n")).out


@pytest.mark.parametrize(
    ("text", "config", "said"),
    [
        ("0,6\n5,x\n", None, "trace.csv:2"),
        ("", None, "found none"),
        ("0,6\n", CONFIG, "expected the api on each line, since cortex.yaml has 2 apis"),
        ("0,6,iris\n0,6,irsi\n", CONFIG, "expected an api of cortex.yaml (iris, other), found 'irsi'"),
    ],
)
def test_a_trace_that_is_none_fails_as_explained(cortex: Any, trace: Any, text: str, config: str | None, said: str):
    arguments = [trace(text)]
    if config is not None:
        (cortex.cwd / "cortex.yaml").write_text(config)
        arguments += ["--config", "cortex.yaml"]
    ran = run(cortex, *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert "bad-trace" in ran.talk
    assert said in ran.talk.replace("\n  ", " ")


def test_a_file_that_is_not_there_or_no_text_is_told(cortex: Any) -> None:
    (cortex.cwd / "bytes").write_bytes(b"\xff\xfe")
    for name, said in (("gone.csv", "No such file"), ("bytes", "not UTF-8"), (".", "directory")):
        ran = run(cortex, name)
        assert (ran.code, "trace-unreadable" in ran.talk, said in ran.talk) == (1, True, True)


@pytest.mark.parametrize(
    "options", [("--seat", "0"), ("--cpu-time", "60ms"), ("--seats", "0"), ("--cores", "0"), ("--seat", "fast")]
)
def test_costs_that_cannot_be_are_wrong_usage(cortex: Any, trace: Any, options: tuple[str, ...]) -> None:
    assert cortex("simulate", "scaling", trace(), *options).code == 2


def test_only_scaling_can_be_simulated(cortex: Any, trace: Any) -> None:
    assert cortex("simulate", "weather", trace()).code == 2
