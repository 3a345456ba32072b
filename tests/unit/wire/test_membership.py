"""What an agent is told of itself, and a control plane of nodes of other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.ids import DeviceId, NodeId
from cortex.wire import membership
from cortex.wire.membership import (
    Capacity,
    Members,
    Membership,
    TcpAddress,
    UnixAddress,
    UnusableMembership,
    address_of,
    file_among,
    members_in,
    membership_in,
    unix_address,
    written,
)
from cortex.wire.reports import Node

MACHINE = Node(node=NodeId("local"), cpu_millis=4000, mem_bytes=2**33, gpus=1, devices=(DeviceId("GPU-1"),))


def a_membership(**fields: Any) -> Membership:
    given: dict[str, Any] = {
        "node": NodeId("n1"),
        "host": "10.0.0.2",
        "port": 8880,
        "peer_port": 8882,
        "control_planes": ("10.0.0.1:8883",),
    }
    return Membership(**(given | fields))


def test_what_is_written_is_read_with_paths_that_begin_at_the_file(tmp_path: Path) -> None:
    told = a_membership(capacity=Capacity.of(MACHINE), authority="/etc/ca.pem", variables={"CORTEX_VIEW_MB": "8"})
    file = tmp_path / "membership.json"
    file.write_bytes(written(told))
    found = membership_in(file)
    assert found == msgspec.structs.replace(told, certificate=str(tmp_path / "node" / "certificate.pem"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/h/run/links.sock", UnixAddress(Path("/h/run/links.sock"))),
        ("10.0.0.1:8883", TcpAddress("10.0.0.1", 8883)),
        ("head.example:1", TcpAddress("head.example", 1)),
        ("[fd00::1]:8883", TcpAddress("fd00::1", 8883)),
    ],
)
def test_where_a_control_plane_listens(text: str, address: object) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text", ["", "unix:run/links.sock", "head", "head:", ":1", "head:0", "head:65536", "fd00::1:1"]
)
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"unix:|host|IPv6"):
        address_of(text)


def test_the_address_of_a_socket_of_this_machine() -> None:
    assert address_of(unix_address(Path("/h/größe/links.sock"))) == UnixAddress(Path("/h/größe/links.sock"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"node": NodeId("control-plane")}, "no node is called control-plane"),
        ({"node": NodeId("two words")}, "'two words' is not a name for a node"),
        ({"host": "head.example"}, "'head.example' does not appear to be an IPv4 or IPv6 address"),
        ({"peer_port": 0}, "port 0 of node n1 is not 1 to 65535"),
        ({"control_planes": ()}, "node n1 has to know where a control plane listens"),
        ({"control_planes": ("10.0.0.1",)}, "'10.0.0.1' is neither"),
    ],
)
def test_a_membership_that_cannot_be_meant_is_made_by_nobody(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        a_membership(**fields)


@pytest.mark.parametrize(
    ("content", "said"), [(b"{", "truncated"), (b"{}", "missing required field"), (None, "No such")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "membership.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UnusableMembership, match=f"{file}: .*{said}"):
        membership_in(file)


def test_a_file_of_nonsense_is_named(tmp_path: Path) -> None:
    file = tmp_path / "membership.json"
    file.write_bytes(written(a_membership()).replace(b'"n1"', b'"control-plane"'))
    with pytest.raises(UnusableMembership, match="no node is called control-plane"):
        membership_in(file)


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "membership.json"
    file.write_bytes(written(a_membership()).replace(b"{", b'{"later": 1, ', 1))
    assert membership_in(file).node == "n1"


def test_a_node_has_what_its_machine_has_unless_it_is_said_to_have_something_else() -> None:
    assert a_membership().report(MACHINE) == msgspec.structs.replace(MACHINE, node=NodeId("n1"))
    stated = Capacity(cpu_millis=500, mem_bytes=2**20)
    assert a_membership(capacity=stated).report(MACHINE) == Node(node=NodeId("n1"), cpu_millis=500, mem_bytes=2**20)


def test_a_command_line_names_the_file_beside_descriptors() -> None:
    file = Path("/home/ann/a b/größe/membership.json")
    assert file_among(["agent", "/h/nodes/n1", membership.argument(file), "7", "8"]) == file
    assert not membership.argument(file).isdecimal(), "those are descriptors"
    assert file_among(["agent", "/h", "7"]) is None


def test_a_control_plane_knows_nodes_of_other_machines_or_none(tmp_path: Path) -> None:
    file = tmp_path / "members.json"
    assert members_in(file) is None
    members = Members(bind="10.0.0.1", port=8883, nodes=(a_membership(),))
    file.write_bytes(written(members))
    assert members_in(file) == members
    file.write_text("{")
    with pytest.raises(UnusableMembership, match="truncated"):
        members_in(file)
