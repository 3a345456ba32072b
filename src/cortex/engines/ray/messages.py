"""
Messages between the engine (`calls.py`) and the process that makes its calls to Ray (`driver.py`).

Frames as in `wire.framing`, one answer for each question, in order. Both are of one installation.
"""

from __future__ import annotations

import msgspec

# ---- what is in a cluster -----------------------------------------------------------------------------------------


class RayNode(msgspec.Struct, frozen=True, kw_only=True):
    """A raylet that Ray takes to be alive."""

    raylet: str
    """Ray's id of it, hex digits: another one when a machine's raylet is started again."""
    name: str
    """As it was started with `--node-name`, else its address: what we call the node."""
    address: str
    kind: str = ""
    """The node type of the autoscaler's that it was started as; empty: it was not started by it."""
    head: bool = False
    started_ms: int = 0
    """Of the raylet, milliseconds since the Unix epoch on its clock."""
    draining: bool = False
    """It is about to be given back and takes nothing new."""
    cpus: float = 0.0
    """Resources as Ray has them: cores, bytes, devices."""
    memory: float = 0.0
    gpus: float = 0.0


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What a placement group holds, in Ray's units: cores, bytes, devices."""

    cpus: float = 0.0
    memory: float = 0.0
    gpus: float = 0.0


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """On which raylets a placement group may be: only on these, or on all but these."""

    raylets: tuple[str, ...]
    others: bool = False


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A placement group of ours."""

    id: str
    name: str
    state: str
    """Ray's word: PENDING, PREPARED, CREATED, RESCHEDULING."""
    raylet: str
    """Where it is or was; empty: nowhere yet."""
    bundle: Bundle
    selector: Selector | None = None


class NewGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A placement group to be made."""

    name: str
    bundle: Bundle
    selector: Selector


class Additions(msgspec.Struct, frozen=True, kw_only=True):
    """What the autoscaler says of nodes that it adds; nothing, where there is none."""

    coming: int = 0
    """Nodes that were asked for and are not there yet."""
    failed: tuple[str, ...] = ()
    """Why nodes could not be had lately."""
    turn: int = 0
    """Another number each time that it has looked at what is wanted; 0: it never has, or there is none."""


class BootOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is brought so that our agent runs there."""

    home: str
    """Of the node, an absolute path."""
    files: dict[str, bytes]
    """Content by path in the home."""
    arguments: tuple[str, ...]
    """The agent's command line."""
    installer: tuple[str, ...] = ()
    """Further arguments of `uv pip install`, as where packages come from."""
    use_installed: bool = True
    """Whether a Cortex of our version is used where the node's Python has one."""


class Booted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it."""

    raylet: str
    python: str = ""
    """What the agent runs with."""
    problem: str = ""
    """Why there is none; empty: there is."""


# ---- questions ------------------------------------------------------------------------------------------------------


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Is there a cluster, and would it have us? Answered by `Probed`."""

    address: str
    """`host:port` of its head."""


class Connect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Become a driver of the cluster. Answered by `Done`."""

    address: str
    namespace: str
    """Of our placement groups."""
    beside: str
    """The address of the raylet on this machine."""


class LookAtCluster(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What is there? Answered by `ClusterSeen`."""


class Change(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Remove and make placement groups, in this order. Answered by `Done`: what failed shows in the next look."""

    remove: tuple[str, ...] = ()
    """Their ids."""
    make: tuple[NewGroup, ...] = ()


class GiveBack(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have a raylet take nothing new, and end once it holds nothing. Cannot be taken back. Answered by `Done`."""

    raylet: str
    reason: str
    within_s: float
    """By then at the latest it ends, whatever it holds."""


class Boot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Begin to have an agent on a node. Answered by `Done`; what becomes of it shows in later looks."""

    raylet: str
    order: BootOrder


Question = Probe | Connect | LookAtCluster | Change | GiveBack | Boot

# ---- answers --------------------------------------------------------------------------------------------------------


class Probed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A cluster that we may join."""

    nodes: tuple[RayNode, ...]


class ClusterSeen(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All that is there."""

    nodes: tuple[RayNode, ...]
    groups: tuple[Group, ...]
    """Those of our namespace, but for removed ones."""
    additions: Additions = Additions()
    booting: tuple[str, ...] = ()
    """Raylets where a boot is under way."""
    booted: tuple[Booted, ...] = ()
    """Boots that have ended since the look before."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It was carried out."""

    complaints: tuple[str, ...] = ()
    """What of it was not, in Ray's words."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ray raised something that has no name here."""

    what: str


class Missing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`ray` cannot be imported."""

    why: str


class Unreachable(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """There is no cluster at the address."""

    why: str


class TokenRefused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The cluster wants another token, or one at all."""


class VersionsDiffer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Of Python or Ray."""

    ours: str
    theirs: str


Refusal = Failed | Missing | Unreachable | TokenRefused | VersionsDiffer
Answer = Probed | ClusterSeen | Done | Refusal
