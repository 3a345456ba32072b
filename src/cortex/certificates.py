"""
A certificate authority of our own: doors and agents of different nodes know each other by it, and by nothing else.

Made when there is a second node, and kept with the control plane alone. It signs one certificate for each node, which
is both what the node shows when it is dialled and what it shows when it dials.

Nothing here reads a clock: instants are seconds since the Unix epoch, and are passed in.
"""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cortex.ids import NodeId
from cortex.processes import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

# `cryptography` is imported where it is used: a long import, which no process of one machine has to pay for.

AUTHORITY_LIFE_S = 10 * 365 * 86400.0
NODE_LIFE_S = 90 * 86400.0
"""A node that was given back is forgotten after so long at the latest, whatever became of its disk."""
RENEWED_BEFORE = 1 / 3
"""A certificate is renewed in the last third of its life, so that weeks of nobody's time lose nothing."""
BACKDATED_S = 3600.0
"""A node's clock may be so much behind ours and still take what was just signed; six times what we ask of clocks."""


class Authority(msgspec.Struct, frozen=True):
    """Who signs. PEM."""

    certificate: bytes
    """For everybody."""
    key: bytes
    """For nobody but the control plane."""


def make_authority(now_s: float) -> Authority:
    """An authority that nobody had before. Two of them know nothing of each other's nodes."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Cortex authority")
    unsigned = (
        _lasting(x509.CertificateBuilder(), now_s, AUTHORITY_LIFE_S)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(certificate=_pem(_signed(unsigned, key)), key=_key_pem(key))


def issue(authority: Authority, node: NodeId, now_s: float, *, life_s: float = NODE_LIFE_S) -> bytes:
    """
    Return a new key and a certificate for a node, in one PEM file as HAProxy takes it.

    Its only name is the node's, as a DNS name: addresses of nodes change, and are not what is trusted. It is good for
    both ends of a connection, and ends at the latest with the authority.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID

    signer = load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    above = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    above_id = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    unsigned = (
        _lasting(x509.CertificateBuilder(), now_s, min(life_s, above.not_valid_after_utc.timestamp() - now_s))
        .subject_name(_name(node))
        .issuer_name(above.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(both_ends, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above_id), critical=False)
    )
    return _pem(_signed(unsigned, signer)) + _key_pem(key)


def is_due(now_s: float, pem: bytes) -> bool:
    """
    Whether a node's certificate is to be renewed now: it is in the last third of its life, or is over.

    One that has not begun yet by this clock is not: it was signed by one that is ahead.

    Raises:
        ValueError: there is no certificate in `pem`.
    """
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(pem)
    begins_s, ends_s = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return now_s >= ends_s - (ends_s - begins_s) * RENEWED_BEFORE


def is_signed_by(authority: bytes, pem: bytes) -> bool:
    """
    Whether a node's certificate is of this authority, whenever it ends.

    Raises:
        ValueError: there is no certificate in one of them.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    above, certificate = x509.load_pem_x509_certificate(authority), x509.load_pem_x509_certificate(pem)
    try:
        certificate.verify_directly_issued_by(above)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def kept_authority(certificate: Path, key: Path, now_s: float) -> Authority:
    """
    The authority in two files, mode 0600; made once. The key is written first: a certificate is never without one.

    Raises:
        OSError: they can neither be read nor written.
    """
    if certificate.exists() and key.exists():
        return Authority(certificate=certificate.read_bytes(), key=key.read_bytes())
    authority = make_authority(now_s)
    write_whole(key, authority.key)
    write_whole(certificate, authority.certificate)
    return authority


def kept_certificate(file: Path, authority: Authority, node: NodeId, now_s: float) -> bool:
    """
    See that a file, mode 0600, holds a certificate of a node that is good for weeks; whether it is another one now.

    Raises:
        OSError: it can neither be read nor written.
    """
    try:
        held = file.read_bytes()
        if is_signed_by(authority.certificate, held) and not is_due(now_s, held):
            return False
    except (FileNotFoundError, ValueError):
        pass  # never made, or nothing that anybody could use
    write_whole(file, issue(authority, node, now_s))
    return True


def fingerprint(*files: Path) -> str:
    """
    Name what is in these files: with other contents it is another one. 16 hex digits.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _lasting(builder: CertificateBuilder, now_s: float, life_s: float) -> CertificateBuilder:
    from cryptography import x509

    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(now_s - BACKDATED_S, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(now_s + life_s, datetime.UTC))
    )


def _signed(builder: CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _name(common_name: str) -> Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
