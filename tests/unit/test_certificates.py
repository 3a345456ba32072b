from __future__ import annotations

import os
import ssl
import stat
import subprocess

import pytest

from cortex import certificates
from cortex.certificates import NODE_LIFE_S, Authority, fingerprint, is_due, is_signed_by
from cortex.ids import NodeId

NOW_S = 1_800_000_000.0
DAY_S = 86400.0
NODE = NodeId("node-b")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return certificates.make_authority(NOW_S)


def verified(tmp_path, authority, pem, at_s, name, *, purpose):
    """What OpenSSL says at an instant, as one end of a connection would."""
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "node.pem").write_bytes(pem)
    command = ["openssl", "verify", "-CAfile", "ca.pem", "-attime", str(int(at_s)), "-purpose", purpose, "-x509_strict"]
    done = subprocess.run(
        [*command, "-verify_hostname", name, "node.pem"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_a_nodes_certificate_is_good_for_both_ends_and_for_its_name_alone(tmp_path, authority, purpose):
    pem = certificates.issue(authority, NODE, NOW_S)
    assert verified(tmp_path, authority, pem, NOW_S, NODE, purpose=purpose) == (True, "node.pem: OK\n")
    good, said = verified(tmp_path, authority, pem, NOW_S, "node-c", purpose=purpose)
    assert not good
    assert "hostname mismatch" in said


@pytest.mark.parametrize(("off_s", "good"), [(-600.0, True), (600.0, True), (NODE_LIFE_S + 1, False), (-7200.0, False)])
def test_a_clock_that_is_ten_minutes_off_takes_it(tmp_path, authority, off_s, good):
    pem = certificates.issue(authority, NODE, NOW_S)
    assert verified(tmp_path, authority, pem, NOW_S + off_s, NODE, purpose="sslserver")[0] is good


def test_another_authority_knows_nothing_of_it(tmp_path, authority):
    pem = certificates.issue(authority, NODE, NOW_S)
    other = certificates.make_authority(NOW_S)
    assert not verified(tmp_path, other, pem, NOW_S, NODE, purpose="sslserver")[0]
    assert is_signed_by(authority.certificate, pem)
    assert not is_signed_by(other.certificate, pem)


def test_a_nodes_certificate_signs_nobody(authority):
    pem = certificates.issue(authority, NODE, NOW_S)
    below = certificates.issue(authority, NodeId("node-c"), NOW_S)
    assert not is_signed_by(pem, below)


def test_it_is_renewed_in_the_last_third_of_its_life(authority):
    pem = certificates.issue(authority, NODE, NOW_S)
    assert not is_due(NOW_S, pem)
    assert not is_due(NOW_S - 7200, pem), "signed by a clock that is ahead"
    assert not is_due(NOW_S + 59 * DAY_S, pem)
    assert is_due(NOW_S + 61 * DAY_S, pem)
    assert is_due(NOW_S + 365 * DAY_S, pem)


def test_no_certificate_outlives_its_authority(tmp_path, authority):
    late_s = NOW_S + certificates.AUTHORITY_LIFE_S - DAY_S
    pem = certificates.issue(authority, NODE, late_s)
    assert verified(tmp_path, authority, pem, late_s, NODE, purpose="sslserver")[0]
    assert not verified(tmp_path, authority, pem, late_s + 2 * DAY_S, NODE, purpose="sslserver")[0]


def test_what_is_kept_is_made_once_and_for_nobody_else_to_read(tmp_path):
    certificate, key, node = (tmp_path / name for name in ("ca.pem", "ca.key", "node.pem"))
    authority = certificates.kept_authority(certificate, key, NOW_S)
    assert certificates.kept_authority(certificate, key, NOW_S + DAY_S) == authority
    assert certificates.kept_certificate(node, authority, NODE, NOW_S)
    before = fingerprint(node, certificate)
    assert not certificates.kept_certificate(node, authority, NODE, NOW_S + DAY_S)
    assert fingerprint(node, certificate) == before
    assert [stat.S_IMODE(os.stat(file).st_mode) for file in (certificate, key, node)] == [0o600] * 3


@pytest.mark.parametrize("spoil", ["due", "foreign", "broken", "empty"])
def test_what_is_no_good_any_more_is_made_anew(tmp_path, authority, spoil):
    node, now_s = tmp_path / "node.pem", NOW_S
    certificates.kept_certificate(node, authority, NODE, NOW_S)
    match spoil:
        case "due":
            now_s = NOW_S + 80 * DAY_S
        case "foreign":
            authority = certificates.make_authority(NOW_S)
        case "broken":
            node.write_bytes(node.read_bytes()[:200])
        case "empty":
            node.write_bytes(b"")
    before = fingerprint(node)
    assert certificates.kept_certificate(node, authority, NODE, now_s)
    assert fingerprint(node) != before
    assert is_signed_by(authority.certificate, node.read_bytes())


def test_half_an_authority_is_none(tmp_path):
    certificate, key = tmp_path / "ca.pem", tmp_path / "ca.key"
    first = certificates.kept_authority(certificate, key, NOW_S)
    certificate.unlink()
    assert certificates.kept_authority(certificate, key, NOW_S) != first


def test_python_takes_what_is_in_one_file(tmp_path, authority):
    file = tmp_path / "node.pem"
    file.write_bytes(certificates.issue(authority, NODE, NOW_S))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file)
