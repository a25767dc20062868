"""A merchant's roster in a deployment: made together with the keys, checked against the merchant's own."""

from __future__ import annotations

from collections.abc import Mapping

from fedrec.deploy.certificates import public_half
from fedrec.deploy.layout import MerchantFolder, is_merchant_name
from fedrec.errors import InputError
from fedrec.secure import Roster

__all__ = ["own_roster", "roster_of"]


def roster_of(keys: Mapping[str, bytes]) -> Roster:
    """The roster of the merchants with these public keys.

    Args:
        keys: OpenSSH lines (`type base64`, no comment) by merchant.
    """
    return Roster({name: line.decode() for name, line in keys.items()})


def own_roster(folder: MerchantFolder) -> Roster:
    """A merchant's copy of the roster, in which it stands itself with the key that its node has.

    Raises:
        InputError: the file is missing or wrong, or the merchant is not in it under its own key.
    """
    roster, own, where = Roster.read(folder.roster), folder.settings.name, str(folder.roster)
    for name in roster.keys:
        if not is_merchant_name(name):
            raise InputError(f"{name!r} is no merchant's name", where=where, expected="MERCHANT ecdsa-sha2-nistp384 ...")
    if own not in roster.keys:
        raise InputError(f"{own} is not in it", where=where, expected="a line for every merchant, this one included")
    if roster.keys[own].encode() != public_half(folder.key):
        raise InputError(
            f"the key under {own} is not the public half of {folder.key.name}",
            where=where,
            expected="the public keys that the merchants have now",
            hint="all merchants must hold the same new roster, compared among each other: `fedrec merchant roster`",
        )
    return roster
