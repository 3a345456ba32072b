"""Tests of `cortex.packages.explanation`: words that uv 0.8 and 0.13 said."""

import pytest

from cortex.errors import Problem
from cortex.packages import explanation
from cortex.packages.requirements import RequirementLine

UNKNOWN = """\
Resolved 1 package in 10ms
error: No solution found when resolving dependencies
  cause: Because pilow was not found in the package registry and you require pilow, we can conclude that your
         requirements are unsatisfiable.
"""
UNKNOWN_BEFORE = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because pilow was not found in the package registry and you require pilow, we can conclude that your
      requirements are unsatisfiable.
"""
NO_VERSION = """\
error: No solution found when resolving dependencies
  cause: Because there is no version of pillow==99 and you require pillow==99, we can conclude that your
         requirements are unsatisfiable.
"""
CONFLICT = """\
error: No solution found when resolving dependencies
  cause: Because all versions of oldnp depend on numpy<1.20 and you require oldnp, we can conclude
         that you require numpy<1.20.
         And because you require numpy>=1.26,<3, we can conclude that your requirements are unsatisfiable.
"""
COMPILER = """\
   Building psycopg2==2.9
error: Failed to build `psycopg2==2.9`
  cause: Call to `setuptools.build_meta.build_wheel` failed (exit status: 1)
         [stderr]
         error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory
"""
RUST = """\
error: Failed to build `tokenizers==0.9`
         error: can't find Rust compiler
         /bin/sh: 1: cargo: not found
"""
NETWORK = """\
error: Failed to fetch: `https://index.example.org/simple/pillow/`
  cause: error sending request for url (https://index.example.org/simple/pillow/)
  cause: dns error: failed to lookup address information: Name or service not known
"""
UNAUTHORIZED = """\
error: No solution found when resolving dependencies
  cause: Because tabulate was not found in the package registry and you require tabulate, we can conclude that your \
requirements are unsatisfiable.

hint: An index URL (http://127.0.0.1:4405/simple) could not be queried due to a lack of valid authentication \
credentials (401 Unauthorized)
"""
UNAVAILABLE = """\
error: Request failed after 3 retries in 9.4s
  cause: Failed to fetch: http://127.0.0.1:4405/simple/tabulate/?k=v
  cause: HTTP status server error (503 Service Unavailable) for url (http://127.0.0.1:4405/simple/tabulate/?k=v)
"""
FULL = "error: Failed to extract archive\n  cause: No space left on device (os error 28)\n"


@pytest.mark.parametrize(
    ("output", "reference", "hint"),
    [
        (UNKNOWN, "packages-unknown", 'spelling of "pilow"'),
        (UNKNOWN_BEFORE, "packages-unknown", 'spelling of "pilow"'),
        (NO_VERSION, "packages-unknown", "a version of pillow that exists"),
        (CONFLICT, "packages-conflict", "change or remove"),
        (COMPILER, "packages-build-failed", "x86_64-linux-gnu-gcc is missing"),
        (RUST, "packages-build-failed", "cargo is missing"),
        (NETWORK, "packages-unreachable", "HTTPS_PROXY"),
        (NETWORK, "packages-unreachable", "PIP_INDEX_URL"),
        (UNAUTHORIZED, "packages-unreachable", "wants other credentials"),
        (UNAVAILABLE, "packages-unreachable", "does not answer"),
        (FULL, "packages-disk-full", "free space"),
        ("error: something else\n", "packages-failed", ""),
    ],
)
def test_a_failure_has_a_reference_and_a_next_step(output, reference, hint):
    problem = explanation.failure(output, doing="resolving packages")
    assert problem.reference == reference
    assert hint in problem.hint
    assert reference in explanation.REFERENCES


def test_the_message_is_the_installers_own_without_its_progress():
    problem = explanation.failure(NO_VERSION.replace("error:", "Resolved 3 packages in 1s\nerror:"), doing="resolving")
    assert problem.message.splitlines()[:2] == [
        "resolving failed:",
        "No solution found when resolving dependencies",
    ]


def test_an_installer_that_says_nothing_still_makes_a_sentence():
    assert explanation.failure("", doing="resolving packages").message.startswith("resolving packages failed, and")


def test_of_very_much_the_beginning_the_errors_and_the_end_are_kept():
    output = "\n".join(["error: Failed", *(f"noise {n}" for n in range(500)), "x.c:1: error: no header", *("z",) * 99])
    found = explanation.relevant(output).splitlines()
    assert len(found) <= explanation.MOST_LINES
    assert found[0] == "Failed"
    assert "x.c:1: error: no header" in found
    assert found[-1] == "z"
    assert any("lines left out" in line for line in found)


def test_very_long_lines_are_cut():
    assert len(explanation.relevant("gcc " + "-I/x " * 1000)) < 400


def test_credentials_of_an_index_are_not_shown():
    assert explanation.relevant("error: Failed to fetch: `https://me:pass@x.org/simple`") == (
        "Failed to fetch: `https://****@x.org/simple`"
    )


def a_line(text, name, number=1):
    return RequirementLine(text=text, name=name, where=f"requirements.txt:{number}")


def test_a_conflict_names_both_sides():
    problem = explanation.failure(CONFLICT, doing="resolving packages")
    placed = explanation.placed(
        problem, [a_line("six", "six"), a_line("oldnp", "oldnp", 2)], ["numpy>=1.26,<3", "orjson>=3"]
    )
    assert placed.where == "requirements.txt:2"
    assert placed.message.splitlines()[-1] == (
        "replicas need numpy>=1.26,<3; requirements.txt asks for oldnp (requirements.txt:2)"
    )


def test_a_name_is_found_however_it_is_spelled_and_not_inside_another():
    problem = Problem(reference="x", message="because Some_Thing was not found, nor pillow-simd")
    assert explanation.placed(problem, [a_line("some-thing", "some-thing", 3)], []).where == "requirements.txt:3"
    assert explanation.placed(problem, [a_line("pillow", "pillow", 4)], []).where == ""


def test_a_pin_out_of_range_names_both_and_a_version_that_works():
    problem = explanation.direct_conflict(a_line("numpy==1.20", "numpy", 7), "numpy>=1.26,<3", "2.4.6")
    assert problem.where == "requirements.txt:7"
    assert problem.message == "requirements.txt asks for numpy==1.20, and replicas of this Cortex need numpy>=1.26,<3"
    assert problem.hint.endswith("numpy==2.4.6")


def test_queries_of_urls_are_as_good_as_passwords():
    said = explanation.relevant(UNAVAILABLE)
    assert "k=v" not in said
    assert "(http://127.0.0.1:4405/simple/tabulate/?****)" in said


def test_the_end_of_a_long_line_says_what_went_wrong():
    problem = explanation.failure(
        f"error: failed to copy {'/long' * 100}: No space left on device\n", doing="installing"
    )
    assert problem.message.endswith("long: No space left on device")
    assert "free space" in problem.hint
    assert len(problem.message) < 400
