"""
What an agent asks the control plane, over a connection that it has dialed for that (`wire.link`).

One question at a time, one frame; it is answered with one frame, or in parts: frames of bytes that begin with `PART`,
and `PartsEnd` after the last. Instead of an answer, or of the parts that are left, there may be `NeedRefused`. What was
asked may be asked again, as an answer may be lost: answering twice has to do no harm.

Each question derives from `Need` and has a tag, each answer from `NeedReply`.
"""

from __future__ import annotations

import msgspec

from cortex.errors import Problem
from cortex.ids import NodeId
from cortex.wire.build import SecretPin
from cortex.wire.operator import StoredFile
from cortex.wire.stats import Attempt

PART = b"\0"
"""No JSON begins with it."""
MAX_PART_BYTES = 2**20
"""Of one frame; longer parts are cut."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent lacks, or has to hand over."""


class NeedReply(msgspec.Struct, frozen=True, kw_only=True):
    """What answers it."""


class PartsEnd(NeedReply, frozen=True, kw_only=True, tag="parts_end"):
    """The parts before were all."""


class NeedRefused(NeedReply, frozen=True, kw_only=True, tag="need_refused"):
    """It was not answered, or not to the end; says why."""

    problem: Problem


# ---- what builds consist of -----------------------------------------------------------------------------------------


class FetchTree(Need, frozen=True, kw_only=True, tag="fetch_tree"):
    """Which files a stored folder has; answered with `TreeListing`."""

    tree: str
    """Its digest."""


class TreeListing(NeedReply, frozen=True, kw_only=True, tag="tree_listing"):
    files: tuple[StoredFile, ...]
    """What the digest is of."""
    sizes_bytes: tuple[int, ...]
    """Of each of them."""


class FetchBlob(Need, frozen=True, kw_only=True, tag="fetch_blob"):
    """The bytes of a file; answered in parts."""

    tree: str
    """A folder that has the file: nobody is given what no folder that they need has."""
    sha256: str
    offset: int = 0
    """Bytes before it have come already."""


class FetchSecrets(Need, frozen=True, kw_only=True, tag="fetch_secrets"):
    """Values for a process that is about to start; answered with `SecretValues`."""

    pins: dict[str, SecretPin]
    """By variable."""
    cloud: SecretPin | None = None


class SecretValues(NeedReply, frozen=True, kw_only=True, tag="secret_values"):
    values: dict[str, str]
    """By variable."""
    cloud: dict[str, str] = {}
    """Variables that lead to clouds."""

    def __repr__(self) -> str:
        return "SecretValues(…)"


class FetchIndexes(Need, frozen=True, kw_only=True, tag="fetch_indexes"):
    """Where packages come from; answered with `PackageIndexes`."""


class PackageIndexes(NeedReply, frozen=True, kw_only=True, tag="package_indexes"):
    variables: dict[str, str] | None
    """What the last deploy handed over, passwords included; None: none has handed anything over."""

    def __repr__(self) -> str:
        return "PackageIndexes(…)"


# ---- what was counted -----------------------------------------------------------------------------------------------


class DeliverCounts(Need, frozen=True, kw_only=True, tag="deliver_counts"):
    """
    Count what replicas of the node have counted. Answered with `CountsTaken` once it is committed.

    The same again counts nothing, nor does what was overtaken by what followed it.
    """

    agent: str
    """Which agent of the node sends it."""
    number: int
    """Grows with each delivery of that agent."""
    files: tuple[msgspec.Raw, ...] = ()
    """Each a `wire.stats.StatsFile`, as a replica wrote it: those that have changed since they were taken."""
    kept: tuple[Attempt, ...] | None = None
    """All attempts on the node that may count more, or of which it has a file. None: as was said before."""
    durably: bool = False
    """Some of the files are to be deleted: they should survive a loss of power here before that."""
    sent_wall_s: float | None = None
    """What the node's clock says. None from an agent that does not say."""


class CountsTaken(NeedReply, frozen=True, kw_only=True, tag="counts_taken"):
    by: str
    """Who counts: another one may know less, and should be sent everything anew."""
    durable: bool = False
    """They are on the disk, where that was asked for."""


# ---- the other nodes ------------------------------------------------------------------------------------------------


class PeerDoor(msgspec.Struct, frozen=True, kw_only=True):
    """Where the door of a node listens for those of others."""

    node: NodeId
    host: str
    """An IP address."""
    port: int


class FollowPeers(Need, frozen=True, kw_only=True, tag="follow_peers"):
    """Where the doors of all nodes are; answered with `PeerDoors` once that is not what was seen, or time is up."""

    seen: tuple[PeerDoor, ...]
    wait_s: float


class PeerDoors(NeedReply, frozen=True, kw_only=True, tag="peer_doors"):
    doors: tuple[PeerDoor, ...]
    """By name, the asker's among them."""


class RenewCertificate(Need, frozen=True, kw_only=True, tag="renew_certificate"):
    """The next certificate of the node, if it is time for one; answered with `RenewedCertificate`."""

    certificate: str
    """PEM of the one that it has, without the key."""


class RenewedCertificate(NeedReply, frozen=True, kw_only=True, tag="renewed_certificate"):
    pem: str
    """With the key; empty: the one that it has is good for weeks."""

    def __repr__(self) -> str:
        return "RenewedCertificate(…)"
