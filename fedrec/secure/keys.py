"""The cryptography of a secure sum, all of it from libraries.

X25519 (RFC 7748) for agreement, HKDF-SHA256 (RFC 5869) for every key that is derived from
one, ChaCha20-Poly1305 (RFC 8439) to seal shares, ChaCha20 as the generator of masks, ECDSA
with SHA-256 on the merchants' node keys, from `cryptography`; Shamir's secret sharing over
GF(2^128) from PyCryptodome, as Flower's own helper does it. Flower's mask generator is not
used: it seeds NumPy's Mersenne twister with 32 bits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
    "SEED",
    "agree",
    "combine",
    "derive",
    "expand",
    "is_canonical",
    "key_pair",
    "new_seed",
    "seal",
    "sign",
    "split",
    "unseal",
    "verify",
]

SEED = 16
"""Bytes of a seed that is shared out: one block of the secret sharing, 128 bits."""
_NONCE = 12


def new_seed() -> bytes:
    """A fresh secret from the operating system."""
    return os.urandom(SEED)


def derive(secret: bytes, *names: bytes) -> bytes:
    """A key of 32 bytes for the use that `names` tell, by HKDF-SHA256."""
    info = b"fedrec" + b"".join(len(name).to_bytes(4, "big") + name for name in names)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)


def key_pair(seed: bytes, *names: bytes) -> tuple[X25519PrivateKey, bytes]:
    """The X25519 private key that a seed stands for, and its public key (32 bytes)."""
    private = X25519PrivateKey.from_private_bytes(derive(seed, b"x25519", *names))
    return private, private.public_key().public_bytes_raw()


def is_canonical(public: bytes) -> bool:
    """Whether these are bytes that `key_pair` gives. X25519 takes others too, and keys that agree on the same secret
    exist even among these, which is why every derived key is bound to names.
    """
    return len(public) == 32 and int.from_bytes(public, "little") < 2**255 - 19


def agree(private: X25519PrivateKey, public: bytes, *names: bytes) -> bytes:
    """The key that two parties share, 32 bytes.

    Raises:
        ValueError: `public` is no usable public key.
    """
    return derive(private.exchange(X25519PublicKey.from_public_bytes(public)), b"agreed", *names)


def expand(key: bytes, numbers: int) -> np.ndarray:
    """(numbers,) uint32 of ChaCha20's key stream; a key is used for one stream only."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * numbers))
    return np.frombuffer(stream, dtype="<u4")


def seal(key: bytes, content: bytes, about: bytes) -> bytes:
    """`content` encrypted and authenticated together with `about`."""
    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """What was sealed.

    Raises:
        ValueError: it was sealed by another key, about something else, or was changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], about)
    except InvalidTag:
        raise ValueError("the seal is broken") from None


def split(secret: bytes, threshold: int, shares: int) -> list[bytes]:
    """Shares of a seed; any `threshold` of them give it back, fewer say nothing."""
    return [share for _, share in Shamir.split(threshold, shares, secret, ssss=False)]


def combine(shares: Sequence[tuple[int, bytes]]) -> bytes:
    """The seed behind some shares, each with its place in what `split` returned, from 0.

    Raises:
        ValueError: two shares have the same place, or one has another length.
    """
    return bytes(Shamir.combine([(place + 1, share) for place, share in shares], ssss=False))


def sign(private: ec.EllipticCurvePrivateKey, statement: bytes) -> bytes:
    """A signature with a merchant's node key."""
    return private.sign(statement, ec.ECDSA(hashes.SHA256()))


def verify(public_line: bytes, statement: bytes, signature: bytes) -> bool:
    """Whether the owner of the node key in an OpenSSH line signed `statement`."""
    key = serialization.load_ssh_public_key(public_line)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
