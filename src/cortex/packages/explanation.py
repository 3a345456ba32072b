"""What an installer said when it failed, as a problem that a user can act on: its own words, and a next step. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec
from packaging.requirements import Requirement

from cortex.errors import Problem
from cortex.packages.requirements import RequirementLine
from cortex.spec.problems import quoted

MOST_LINES = 40
FIRST_LINES, LAST_LINES = 6, 14
"""Of more lines than are shown, so many of the beginning and of the end."""
MOST_ERRORS = 10
"""And so many of those in between that say that they are an error."""
MOST_CHARACTERS = 300
"""Of a line: a compiler's command line is longer, and nobody reads it."""

_NOISE = re.compile(
    r"^\s*(Using|Resolved|Prepared|Installed|Uninstalled|Audited|Checked|Creating|Activate|Bytecode|Downloading|"
    r"Downloaded|Building|Built|Updating|Updated) |^ [-+~] \S+==|^\s*$"
)
_ERROR = re.compile(r"\berror\b", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]+@")
_QUERY = re.compile(r"(\w+://[^\s?'\"`]+\?)[^\s'\"`),]+")
_COMPILER = re.compile(
    r"(?:command|program|compiler|tool)?\s*[`'\"]?(?:\S*/)?(?P<tool>[\w+.-]*(?:gcc|g\+\+|clang|gfortran)[\w+.-]*|cc|c\+\+|"
    r"rustc|cargo|cmake|ninja|make|swig|pkg-config|nvcc|cython)[`'\"]?(?:[^\n]{0,40})"
    r"(?:not found|no such file|cannot find|is not installed|could not be found|command not found)",
    re.IGNORECASE,
)
_CANNOT_RUN = re.compile(
    r"(?:no such file or directory|cannot find|not found|unable to find)[^\n]{0,20}[:\s][`'\"](?:\S*/)?"
    r"(?P<tool>[\w+.-]*(?:gcc|g\+\+|clang|gfortran)[\w+.-]*|cc|c\+\+|rustc|cargo|cmake|ninja|make|swig|pkg-config|nvcc)"
    r"[`'\"]",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(r"[Bb]ecause (\S+) was not found in (?:the package registry|the provided package locations)")
_REFUSED = re.compile(r"\(?(401 Unauthorized|403 Forbidden|407 Proxy Authentication Required)")
_NO_VERSION = re.compile(r"there (?:is|are) no versions? of (\S+?)[=<>!~]")


def failure(output: str, *, doing: str) -> Problem:
    """
    Why an installer failed.

    Args:
        output: everything that it wrote.
        doing: what it was to do, e.g. `resolving packages`.
    """
    said = relevant(output)
    message = f"{doing} failed:\n{said}" if said else f"{doing} failed, and the installer did not say why"
    reference, hint = _advice(said)
    return Problem(reference=reference, message=message, hint=hint)


def relevant(output: str) -> str:
    """The lines that say what went wrong, without progress, credentials and the middle of what is very long."""
    lines = [line.rstrip() for line in without_credentials(output).splitlines() if not _NOISE.match(line)]
    if lines and lines[0].startswith("error: "):
        lines[0] = lines[0].removeprefix("error: ")
    if len(lines) > MOST_LINES:
        between = lines[FIRST_LINES:-LAST_LINES]
        errors = [line for line in between if _ERROR.search(line)][:MOST_ERRORS]
        gap = f"… {len(between) - len(errors)} lines left out …"
        lines[FIRST_LINES:-LAST_LINES] = [gap, *errors, "…"] if errors else [gap]
    return "\n".join(map(_shortened, lines))


def _shortened(line: str) -> str:
    """A line without its middle if it is long: paths come first, and what went wrong last."""
    if len(line) <= MOST_CHARACTERS:
        return line
    half = MOST_CHARACTERS // 2
    return f"{line[:half]} … {line[-half:]}"


def without_credentials(text: str) -> str:
    """Text whose URLs have no user names, passwords and queries: those of signed URLs are as good as passwords."""
    return _QUERY.sub(r"\1****", _CREDENTIALS.sub(r"\1****@", text))


def placed(problem: Problem, lines: Iterable[RequirementLine], needed: Sequence[str]) -> Problem:
    """
    The problem with the line that it is about, and with what replicas need of a package that it names.

    Args:
        lines: of the user's requirements.
        needed: what replicas need, as lines of a requirements.txt.
    """
    named = [line for line in lines if _names(problem.message, line.name)]
    ours = [need for need in needed if _names(problem.message, Requirement(need).name)]
    if problem.reference == "packages-conflict" and ours:
        theirs = ", ".join(f"{line.text} ({line.where})" for line in named) or "other packages"
        message = f"{problem.message}\nreplicas need {', '.join(ours)}; requirements.txt asks for {theirs}"
        problem = msgspec.structs.replace(problem, message=message)
    if named and not problem.where:
        problem = msgspec.structs.replace(problem, where=named[0].where)
    return problem


def direct_conflict(line: RequirementLine, need: str, installed: str | None) -> Problem:
    """A pin that a replica cannot live with."""
    hint = f"write a version in that range, such as {line.name}=={installed}" if installed else "choose another version"
    return Problem(
        reference="packages-conflict",
        message=f"requirements.txt asks for {line.text}, and replicas of this Cortex need {need}",
        where=line.where,
        hint=hint,
    )


def _names(text: str, package: str) -> bool:
    pattern = re.escape(package).replace("\\-", "[-_.]")
    return re.search(rf"(?<![\w.-]){pattern}(?![\w-])", text, re.IGNORECASE) is not None


def _advice(said: str) -> tuple[str, str]:
    """A stable reference, and the next step."""
    missing = _COMPILER.search(said) or _CANNOT_RUN.search(said)
    if missing is not None:
        tool = missing["tool"]
        return "packages-build-failed", (
            f"a package has to be compiled here, and {tool} is missing: install it on this machine (Debian, Ubuntu: "
            "apt-get install build-essential), or pin a version that comes as a wheel"
        )
    if _REFUSED.search(said):
        return "packages-unreachable", (
            "the package index wants other credentials: put user name and password into UV_INDEX_URL or PIP_INDEX_URL\n"
            "(UV_EXTRA_INDEX_URL, PIP_EXTRA_INDEX_URL) of the shell that deploys, or into ~/.netrc"
        )
    unknown = _UNKNOWN.search(said)
    if unknown is not None:
        return "packages-unknown", (
            f"check the spelling of {quoted(unknown[1])}; a package of your own index needs a line "
            "--index-url or --extra-index-url"
        )
    no_version = _NO_VERSION.search(said)
    if no_version is not None:
        return "packages-unknown", f"choose a version of {no_version[1]} that exists for this Python"
    for pattern, reference, hint in _ADVICE:
        if re.search(pattern, said, re.IGNORECASE):
            return reference, hint
    return "packages-failed", ""


_ADVICE = (
    (
        r"no space left on device|disk quota exceeded",
        "packages-disk-full",
        "free space on the disks of CORTEX_HOME and of uv's cache (`uv cache prune`)",
    ),
    (
        r"unsatisfiable|cannot be used",
        "packages-conflict",
        "change or remove one of the requirements named there",
    ),
    (
        r"failed to build|build backend|build_wheel|metadata-generation|Call to `",
        "packages-build-failed",
        "pin a version that comes as a wheel for this Python, or install on this machine what the build needs",
    ),
    (
        r"hash mismatch",
        "packages-failed",
        "the index gave other bytes than were locked: `cortex refresh` resolves again",
    ),
    (
        r"failed to fetch|error sending request|dns error|connection refused|timed out|network",
        "packages-unreachable",
        "the package index does not answer this machine: check the network, or set a proxy (HTTPS_PROXY) or another\n"
        "index (UV_INDEX_URL or PIP_INDEX_URL) in the shell that deploys",
    ),
)

REFERENCES = {
    "packages-build-failed": "A package that comes as source could not be built.",
    "packages-conflict": "Requirements contradict one another, or what replicas need.",
    "packages-disk-full": "A disk of the node has no room for them.",
    "packages-failed": "The installer failed; its own words say why.",
    "packages-unknown": "The package index does not have a package, or not that version.",
    "packages-unreachable": "The package index does not answer, or refuses to.",
}
"""Every reference that this module gives, with its meaning in one sentence."""
