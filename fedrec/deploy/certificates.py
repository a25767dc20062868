"""Keys and certificates: an authority for the server's TLS, an elliptic-curve key for every merchant.

Everything comes from the package `cryptography`; functions here return bytes, and
`fedrec.deploy.create` puts them into files.
"""

from __future__ import annotations

import base64
import ipaddress
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrec.errors import InputError

__all__ = [
    "DAYS",
    "Identity",
    "KeyPair",
    "check_private",
    "issue_server",
    "key_fingerprint",
    "new_authority",
    "new_node_key",
    "public_half",
    "read_authority",
    "read_public_key",
    "server_identity",
]

DAYS = 397
"""How long a server certificate holds by default: what public authorities grant, a little over a year."""
_AUTHORITY_DAYS = 3652

_SKEW = timedelta(hours=1)
_NODE_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True)
class KeyPair:
    """A private key, and what the world may see of it.

    Attributes:
        private: PEM (PKCS 8), or OpenSSH's format for a merchant's key.
        public: a PEM certificate, or an OpenSSH line.
    """

    private: bytes = field(repr=False)
    public: bytes


class Identity(NamedTuple):
    """What a person compares: whom a certificate is for, until when, and its fingerprint.

    Attributes:
        names: DNS names and IP addresses.
        not_after: in UTC.
        fingerprint: SHA-256 of the certificate, in hexadecimal pairs.
    """

    names: tuple[str, ...]
    not_after: datetime
    fingerprint: str


def new_authority(name: str) -> KeyPair:
    """A self-signed authority that can sign servers and no further authority (RFC 5280, 4.2.1).

    Args:
        name: the deployment's, at most 40 characters: a common name holds 64.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedrec {name} authority")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(key.public_key(), subject, subject, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(_pem(key), certificate.public_bytes(Encoding.PEM))


def issue_server(authority: KeyPair, host: str, days: int = DAYS) -> KeyPair:
    """A new key for the server and its certificate, for `host` and this machine's own names.

    Args:
        authority: who signs.
        host: a DNS name, or an IP address without brackets.
        days: how long it holds from now.

    Raises:
        InputError: `days` is none, or the certificate would outlive its authority.
    """
    ca = x509.load_pem_x509_certificate(authority.public)
    ca_key = cast(ec.EllipticCurvePrivateKey, serialization.load_pem_private_key(authority.private, None))
    left = (ca.not_valid_after_utc - datetime.now(UTC)).days
    if not 1 <= days <= left:
        hint = "a new authority holds longer: `fedrec deploy rotate OUT --authority`"
        raise InputError(f"found {days}", where="--days", expected=f"1 to {left}, what the authority has left", hint=hint)
    key = ec.generate_private_key(ec.SECP256R1())
    names = dict.fromkeys([host, "localhost", "127.0.0.1", "::1"])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedrec server")])
    signer = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(key.public_key(), subject, ca.subject, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return KeyPair(_pem(key), certificate.public_bytes(Encoding.PEM))


def new_node_key(name: str) -> KeyPair:
    """A merchant's key pair (P-384) in OpenSSH's formats, as Flower reads them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return KeyPair(private, public + f" {name}\n".encode())


def read_authority(key: Path, certificate: Path) -> KeyPair:
    """The authority that `init` made.

    Raises:
        InputError: a file is missing, open to others or not what it should be, or the two
            do not belong together.
    """
    check_private(key)
    ca, pair = _read_certificate(certificate), KeyPair(key.read_bytes(), certificate.read_bytes())
    try:
        own = serialization.load_pem_private_key(pair.private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        own = None
    if not isinstance(own, ec.EllipticCurvePrivateKey):
        raise InputError("is no elliptic-curve private key", where=str(key), expected="the one that `init` made")
    try:
        ca.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise InputError("is not self-signed", where=str(certificate), expected="the one that `init` made") from None
    if own.public_key() != ca.public_key():
        raise InputError(f"is not the key of {certificate.name}", where=str(key), expected="the one that `init` made")
    return pair


def server_identity(certificate: Path) -> Identity:
    """Whom a certificate is for, until when, and its fingerprint.

    Raises:
        InputError: it is no certificate, or one without names.
    """
    read = _read_certificate(certificate)
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InputError("names no server", where=str(certificate), expected="a server's certificate") from None
    fingerprint = read.fingerprint(hashes.SHA256()).hex(":").upper()
    return Identity(tuple(str(name.value) for name in names), read.not_valid_after_utc, fingerprint)


def check_private(path: Path) -> None:
    """Refuse a private key that others on this machine could read.

    Raises:
        InputError: it is not there, or its mode is neither 0600 nor 0400.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path), expected="a private key")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode not in (0o600, 0o400):
        raise InputError(f"has mode {mode:04o}", where=str(path), expected="0600 or 0400", hint=f"chmod 600 {path}")


def read_public_key(path: Path) -> bytes:
    """A merchant's public key as an OpenSSH line without a comment.

    Raises:
        InputError: naming the file, which is no public key on a NIST curve.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes().strip())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except (ValueError, UnsupportedAlgorithm):
        key = None  # type: ignore[assignment]
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _NODE_CURVES):
        raise InputError(
            "is no elliptic-curve public key in OpenSSH's format",
            where=str(path),
            expected="one line `ecdsa-sha2-nistp384 ...`",
            hint="make a pair with `ssh-keygen -t ecdsa -b 384 -f node.key -N ''` and send node.key.pub",
        )
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def public_half(key: Path) -> bytes:
    """The public key of a merchant's private one, as an OpenSSH line without a comment.

    Raises:
        InputError: the file is missing, open to others, or no private key on a NIST curve without a password.
    """
    check_private(key)
    try:
        private = serialization.load_ssh_private_key(key.read_bytes(), None)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(key)) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None  # type: ignore[assignment]
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, _NODE_CURVES):
        raise InputError(
            "is no elliptic-curve private key in OpenSSH's format", where=str(key), expected="the node's key, without a password"
        )
    return private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def key_fingerprint(line: bytes) -> str:
    """The fingerprint of an OpenSSH public key, as `ssh-keygen -l` prints it."""
    digest = serialization.ssh_key_fingerprint(serialization.load_ssh_public_key(line), hashes.SHA256())
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except ValueError:
        raise InputError("is no PEM certificate", where=str(path)) from None


def _builder(key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        # The other machine's clock may be behind.
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
