"""
What to offer for a word of a command line that is not understood. Pure.

Never the opposite of what was typed, never something else that does harm, and never `--help` because it looks alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MOST = 3
SIMILAR = 0.75
"""Below it words look alike by accident: `undeploy` and `deploy`, `--al` and `--help`."""

HARMFUL = frozenset(("--yes", "--force", "--purge", "--prune"))
"""Offered to whoever typed their beginning, not to whoever typed something like them: `--prune` is not `--purge`."""

OLD_COMMANDS: Mapping[str, str] = {
    "help": "here it is `cortex --help`, and `cortex COMMAND --help` for one command",
}
"""What commands of other versions are called here, where one word does not say it."""

MEANT: Mapping[str, str] = {
    **dict.fromkeys(("undeploy", "remove", "rm", "destroy"), "cortex delete"),
    **dict.fromkeys(("list", "ls", "ps", "status", "show", "describe"), "cortex get"),
    **dict.fromkeys(("apply", "push", "create", "redeploy", "patch"), "cortex deploy"),
    **dict.fromkeys(("start", "serve", "run"), "cortex up"),
    **dict.fromkeys(("stop", "shutdown"), "cortex down"),
    **dict.fromkeys(("env", "environment", "environments"), "cortex configure"),
    **dict.fromkeys(("tail",), "cortex logs"),
    **dict.fromkeys(("test", "curl", "query"), "cortex predict"),
    **dict.fromkeys(("versions",), "cortex history"),
    **dict.fromkeys(("new",), "cortex init"),
}
"""Commands by what they are called elsewhere."""

OLD_OPTIONS: Mapping[tuple[str, str], str] = {
    ("", "-e"): "here it is `--env NAME`",
    ("", "-V"): "here it is `cortex --version`",
    ("delete", "-c"): "no cache is kept that would be deleted: leave it out",
    ("delete", "--keep-cache"): "no cache is kept that would be deleted: leave it out",
    ("delete", "-f"): "here it is `-y`, which deletes without asking",
    ("delete", "--force"): "here it is `-y`, which deletes without asking",
    **dict.fromkeys(
        (("delete", "-d"), ("delete", "--deployment")),
        "a deployment is named without a flag: cortex delete DEPLOYMENT, one api of it DEPLOYMENT/API",
    ),
    **dict.fromkeys(
        (("configure", "-p"), ("configure", "--print")), "without any flag `cortex configure` shows what is configured"
    ),
    ("deploy", "-f"): "here it is `--force`; a yaml file is named without a flag: cortex deploy FILE",
    ("refresh", "-f"): "here it is `--force`",
    ("deploy", "-r"): "here it is a command: `cortex refresh`",
    ("deploy", "--refresh"): "here it is a command: `cortex refresh`",
    ("deploy", "-c"): "a yaml file is named without a flag: cortex deploy FILE",
    ("deploy", "--config"): "a yaml file is named without a flag: cortex deploy FILE",
    ("deploy", "-y"): "nothing is asked: leave it out",
}
"""What flags of other versions are called here, by command (empty: all) and flag."""


def command_hint(word: str, names: Sequence[str]) -> str:
    """The hint for a command that there is none of. A word may be the beginning of one of `names`, or misspelt."""
    if word.lower() in OLD_COMMANDS:
        return OLD_COMMANDS[word.lower()]
    meant = MEANT.get(word.lower())
    if meant is not None:
        return f"here it is `{meant}`"
    plain = word.lower()
    close = [name for name in names if plain and name.startswith(plain)] or alike(plain, names)
    return f"did you mean {' or '.join(f'`cortex {name}`' for name in close)}?" if close else ""


def option_hint(command: str, option: str, options: Iterable[str]) -> str:
    """The hint for an option that a command does not have. `options` are those that it has, as they are typed."""
    old = OLD_OPTIONS.get((command, option)) or OLD_OPTIONS.get(("", option))
    if old is not None:
        return old
    known = sorted(name for name in options if name.startswith("--"))
    close = [name for name in known if len(option) > 2 and name.startswith(option)] or alike(option, known)
    return f"did you mean {' or '.join(close[:MOST])}?" if close else ""


def alike(word: str, choices: Iterable[str]) -> list[str]:
    """Choices that are probably a misspelt word, likeliest first."""
    from difflib import get_close_matches

    safe = [choice for choice in choices if choice not in HARMFUL and not are_opposite(word, choice)]
    return get_close_matches(word, safe, MOST, SIMILAR)


def are_opposite(one: str, other: str) -> bool:
    """Whether one word says "not" and the other does not: misspelt, `--no-folow` is never `--follow`."""
    plain = [word.removeprefix("--").replace("-", "") for word in (one, other)]
    if plain[0] == plain[1]:
        return False  # `--nofollow`
    if one.startswith("--no-") != other.startswith("--no-"):
        return True
    short, long = sorted(plain, key=len)
    return any(long == f"{no}{short}" for no in ("no", "not", "un", "de", "dis", "non"))
