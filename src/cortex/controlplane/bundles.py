"""What a node is brought before its agent starts: its membership, and what it is known by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cortex import processes
from cortex.certificates import Authority, is_due, is_signed_by, issue, kept_authority, kept_certificate
from cortex.ids import NodeId
from cortex.settings import ControlLayout, NodeLayout
from cortex.tls import TlsIdentity
from cortex.wire.membership import CONTROL_PLANE, Membership, written

_HOME = NodeLayout(Path())


def bundle(layout: ControlLayout, membership: Membership, *, now_wall_s: float) -> dict[str, bytes]:
    """
    Return the files that a node of another machine needs, by their paths in its home. All are for mode 0600.

    There is a new certificate in each, so that bringing it again also renews that. With the files in their places, the
    agent is `python -m cortex.agent --membership=<home>/membership.json`, in any environment.

    Raises:
        OSError: the home of the control plane cannot be read or written.
    """
    authority = kept_authority(layout.authority_certificate, layout.authority_key, now_wall_s)
    certificate = issue(authority, membership.node, now_wall_s)
    return {**_apart_from_certificate(layout, membership, authority), str(_HOME.certificate): certificate}


def lay_down(home: Path, files: Mapping[str, bytes]) -> None:
    """
    Put files into a node's home.

    Raises:
        UnusableHome, OSError: it cannot be written.
    """
    NodeLayout(home).prepare()
    for name, content in files.items():
        processes.write_whole(home / name, content)


def keep_at_home(layout: ControlLayout, membership: Membership, home: Path, *, now_wall_s: float) -> None:
    """
    See that a node of this machine has its bundle, with a certificate that is good for weeks.

    Raises:
        UnusableHome, OSError: a home cannot be written.
    """
    authority = kept_authority(layout.authority_certificate, layout.authority_key, now_wall_s)
    lay_down(home, _apart_from_certificate(layout, membership, authority))
    kept_certificate(home / _HOME.certificate, authority, membership.node, now_wall_s)


def next_certificate(layout: ControlLayout, node: NodeId, held: bytes, *, now_wall_s: float) -> bytes | None:
    """
    Return another certificate for a node, PEM with the key; None: the one that it has is good for weeks.

    Args:
        held: PEM of that, the key need not be there.

    Raises:
        OSError: the home of the control plane cannot be read or written.
    """
    authority = kept_authority(layout.authority_certificate, layout.authority_key, now_wall_s)
    try:
        if is_signed_by(authority.certificate, held) and not is_due(now_wall_s, held):
            return None
    except ValueError:
        pass  # nothing that anybody could use
    return issue(authority, node, now_wall_s)


def control_plane_identity(layout: ControlLayout, *, now_wall_s: float) -> TlsIdentity:
    """
    What agents of other machines know the control plane by; renewed when that is due.

    Raises:
        OSError: its home cannot be written.
    """
    authority = kept_authority(layout.authority_certificate, layout.authority_key, now_wall_s)
    kept_certificate(layout.certificate, authority, NodeId(CONTROL_PLANE), now_wall_s)
    return TlsIdentity(authority=layout.authority_certificate, certificate=layout.certificate, key=layout.certificate)


def _apart_from_certificate(layout: ControlLayout, membership: Membership, authority: Authority) -> dict[str, bytes]:
    return {
        str(_HOME.membership_file): written(membership),
        str(_HOME.authority): authority.certificate,
        str(_HOME.probe_token_file): processes.kept_token(layout.probe_token_file).encode(),
    }
