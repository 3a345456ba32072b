"""Agents of other machines: who shows its node's certificate of the cluster is taken, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trustme

from cortex.agent.dialing import RefusedByControlPlane, dial_tls, hang_up, introduce
from cortex.binding import bind_tcp
from cortex.controlplane.links import AgentConnection, Incarnations, Links
from cortex.ids import NodeId
from cortex.tls import TlsIdentity
from cortex.wire.link import ORDERS, PROTOCOL, Hello
from cortex.wire.membership import CONTROL_PLANE

DEADLINE_S = 60.0
HELLO = Hello(node=NodeId("n1"), agent="a", way=ORDERS)


class Cluster:
    """A control plane that takes agents in over TLS, and only notes who came."""

    def __init__(self, folder: Path, *, name: str = CONTROL_PLANE) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.came: list[Hello] = []
        listener = bind_tcp("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.links = Links(
            path=folder / "links.sock",
            epoch=lambda: 1,
            incarnations=Incarnations(),
            ways={ORDERS: self._take},
            wide=(listener, self.identity(name).server_context()),
        )
        self.links.start()

    def _take(self, connection: AgentConnection, hello: Hello) -> None:
        self.came.append(hello)
        connection.close()

    def identity(
        self, name: str = "n1", *, signed_by: trustme.CA | None = None, trusts: trustme.CA | None = None
    ) -> TlsIdentity:
        return self._identity(name, (signed_by or self.authority).issue_cert(name), trusts)

    def expired(self, name: str) -> TlsIdentity:
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        return self._identity(name, self.authority.issue_cert(name, not_after=yesterday), None)

    def _identity(self, name: str, signed: trustme.LeafCert, trusts: trustme.CA | None) -> TlsIdentity:
        identity = TlsIdentity(*(self.folder / f"{name}-{part}.pem" for part in ("authority", "certificate", "key")))
        (trusts or self.authority).cert_pem.write_to_path(identity.authority)
        signed.cert_chain_pems[0].write_to_path(identity.certificate)
        signed.private_key_pem.write_to_path(identity.key)
        return identity

    def dial(self, identity: TlsIdentity, hello: Hello = HELLO) -> None:
        """Introduce an agent."""

        async def story() -> None:
            async with asyncio.timeout(DEADLINE_S):
                _reader, writer = await introduce(dial_tls("127.0.0.1", self.port, identity), hello)
                await hang_up(writer)

        asyncio.run(story())


@contextlib.contextmanager
def listening(name: str = CONTROL_PLANE) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    cluster = Cluster(folder, name=name)
    try:
        yield cluster
    finally:
        cluster.links.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with listening() as cluster:
        yield cluster


def test_an_agent_with_the_certificate_of_its_node_is_taken(cluster: Cluster) -> None:
    cluster.dial(cluster.identity())


def test_an_agent_of_the_protocol_before_is_taken(cluster: Cluster) -> None:
    cluster.dial(cluster.identity(), msgspec.structs.replace(HELLO, version="0.0.9", protocol=PROTOCOL - 1))


def test_an_agent_with_the_certificate_of_another_node_is_turned_away_with_both_named(cluster: Cluster) -> None:
    with pytest.raises(RefusedByControlPlane, match="says that it is of node n1, and its certificate is of n2"):
        cluster.dial(cluster.identity("n2"))
    with pytest.raises(RefusedByControlPlane, match="of node n1, and its certificate is of control-plane"):
        cluster.dial(cluster.identity(CONTROL_PLANE))
    assert cluster.came == []


def test_an_agent_without_a_certificate_is_not_taken(cluster: Cluster) -> None:
    identity = cluster.identity()

    async def story() -> None:
        context = ssl.create_default_context(cafile=identity.authority)
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", cluster.port, ssl=context, server_hostname=CONTROL_PLANE
            )
            with pytest.raises(OSError, match="CERTIFICATE_REQUIRED"):
                await reader.read()
            writer.close()

    asyncio.run(story())
    assert cluster.came == []


def test_an_agent_whose_certificate_somebody_else_signed_is_not_taken(cluster: Cluster) -> None:
    with pytest.raises(OSError):
        cluster.dial(cluster.identity(signed_by=trustme.CA()))
    assert cluster.came == []
    cluster.dial(cluster.identity())


def test_a_control_plane_whose_certificate_somebody_else_signed_is_told_nothing(cluster: Cluster) -> None:
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        cluster.dial(cluster.identity(trusts=trustme.CA()))
    assert cluster.came == []


def test_a_node_that_poses_as_a_control_plane_is_told_nothing() -> None:
    with listening("n2") as cluster:
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            cluster.dial(cluster.identity())
        assert cluster.came == []


def test_an_agent_whose_certificate_has_expired_is_not_taken(cluster: Cluster) -> None:
    with pytest.raises(OSError):
        cluster.dial(cluster.expired("n1"))
    assert cluster.came == []


def test_an_agent_of_another_version_is_turned_away_with_both_named(cluster: Cluster) -> None:
    hello = msgspec.structs.replace(HELLO, version="9.9.9", protocol=99)
    with pytest.raises(RefusedByControlPlane, match=r"9\.9\.9 \(protocol 99\).*its control plane Cortex"):
        cluster.dial(cluster.identity(), hello)


def test_who_talks_without_tls_is_left_and_harms_nobody(cluster: Cluster) -> None:
    async def story() -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                await hang_up(writer)

    asyncio.run(story())
    assert cluster.came == []
    cluster.dial(cluster.identity())
