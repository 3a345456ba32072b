"""What a node is brought before its agent starts."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from cortex.certificates import NODE_LIFE_S, is_signed_by, issue, make_authority
from cortex.controlplane.bundles import bundle, control_plane_identity, keep_at_home, lay_down, next_certificate
from cortex.ids import NodeId
from cortex.settings import ControlLayout, NodeLayout
from cortex.wire.membership import Membership, membership_in

NOW_S = 1_800_000_000.0
NODE = Membership(node=NodeId("n1"), host="10.0.0.2", port=8880, peer_port=8882, control_planes=("10.0.0.1:8883",))


@pytest.fixture
def layout(tmp_path: Path) -> ControlLayout:
    layout = ControlLayout(tmp_path / "h")
    layout.prepare()
    return layout


def test_a_bundle_is_all_that_a_node_has_to_have_and_nobody_else_may_read_it(
    layout: ControlLayout, tmp_path: Path
) -> None:
    files = bundle(layout, NODE, now_wall_s=NOW_S)
    home = NodeLayout(tmp_path / "n1")
    lay_down(home.home, files)
    found = membership_in(home.membership_file)
    assert (found.node, found.certificate, found.authority) == ("n1", str(home.certificate), str(home.authority))
    assert is_signed_by(home.authority.read_bytes(), home.certificate.read_bytes())
    assert home.probe_token_file.read_text() == layout.probe_token_file.read_text()
    assert {name: stat.S_IMODE((home.home / name).stat().st_mode) for name in files} == dict.fromkeys(files, 0o600)
    assert not any(b"PRIVATE KEY" in content for name, content in files.items() if "certificate" not in name)


def test_each_bundle_of_a_node_has_a_certificate_of_its_own_and_one_authority(layout: ControlLayout) -> None:
    first, second = bundle(layout, NODE, now_wall_s=NOW_S), bundle(layout, NODE, now_wall_s=NOW_S)
    assert {name for name in first if first[name] != second[name]} == {"node/certificate.pem"}


def test_a_node_of_this_machine_keeps_its_certificate_until_it_is_due(layout: ControlLayout, tmp_path: Path) -> None:
    home = NodeLayout(tmp_path / "n1")
    keep_at_home(layout, NODE, home.home, now_wall_s=NOW_S)
    first = home.certificate.read_bytes()
    keep_at_home(layout, NODE, home.home, now_wall_s=NOW_S + NODE_LIFE_S / 2)
    assert home.certificate.read_bytes() == first
    keep_at_home(layout, NODE, home.home, now_wall_s=NOW_S + NODE_LIFE_S * 0.9)
    assert home.certificate.read_bytes() != first


def test_a_control_plane_is_known_by_one_name_and_can_be_listened_with(layout: ControlLayout) -> None:
    identity = control_plane_identity(layout, now_wall_s=NOW_S)
    assert identity.server_context().verify_mode is ssl.CERT_REQUIRED
    assert b"PRIVATE KEY" in layout.certificate.read_bytes()
    assert stat.S_IMODE(layout.certificate.stat().st_mode) == 0o600


def test_a_node_that_asks_is_given_another_certificate_when_its_own_is_due_or_of_no_use(layout: ControlLayout) -> None:
    held = bundle(layout, NODE, now_wall_s=NOW_S)["node/certificate.pem"]
    assert next_certificate(layout, NODE.node, held, now_wall_s=NOW_S) is None
    authority = layout.authority_certificate.read_bytes()
    of_another = issue(make_authority(NOW_S), NODE.node, NOW_S)
    for shown, now_s in ((held, NOW_S + NODE_LIFE_S * 0.9), (of_another, NOW_S), (b"nothing", NOW_S)):
        found = next_certificate(layout, NODE.node, shown, now_wall_s=now_s)
        assert found is not None
        assert is_signed_by(authority, found)
        assert b"PRIVATE KEY" in found
