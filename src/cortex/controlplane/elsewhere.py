"""Nodes of other machines: where their agents dial in, and which there are."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from cortex.clock import Clock
from cortex.controlplane.bundles import control_plane_identity, next_certificate
from cortex.engines.local import LocalEngine
from cortex.ids import NodeId
from cortex.settings import ControlLayout
from cortex.wire.membership import Members
from cortex.wire.needs import RenewCertificate, RenewedCertificate
from cortex.wire.reports import AgentReport


class Elsewhere:
    """
    What there is of nodes of other machines.

    Args:
        listener: where their agents dial in; whoever listens there closes it.

    Raises:
        OSError: the home cannot be written.
    """

    def __init__(self, layout: ControlLayout, members: Members, listener: socket.socket, clock: Clock) -> None:
        self._layout = layout
        self._clock = clock
        context = control_plane_identity(layout, now_wall_s=clock.wall_s()).server_context()
        self.wide = (listener, context)
        """Where is listened, and what agents are to trust and to show."""
        self.known = tuple(node.node for node in members.nodes)
        """Nodes that are waited for. Others with a certificate of ours are taken as they come."""
        stated = [node.capacity.node(node.node) for node in members.nodes if node.capacity is not None]
        shares_cpu = bool(members.nodes) and all(node.shares_cpu for node in members.nodes)
        self.engine = LocalEngine(*stated, shares_cpu=shares_cpu)

    def take(self, reports: Iterable[AgentReport]) -> None:
        """Nodes say what they have. Quick."""
        self.engine.meet(report.node for report in reports)

    def certificate(self, need: RenewCertificate, node: NodeId) -> RenewedCertificate:
        """Answer a node that asks whether its certificate is to be another one. Raises OSError."""
        pem = next_certificate(self._layout, node, need.certificate.encode(), now_wall_s=self._clock.wall_s())
        return RenewedCertificate(pem=(pem or b"").decode())

    def renew(self) -> None:
        """Show a certificate that is good for weeks to those who come from now on. Raises OSError."""
        identity = control_plane_identity(self._layout, now_wall_s=self._clock.wall_s())
        self.wide[1].load_cert_chain(identity.certificate, identity.key)
