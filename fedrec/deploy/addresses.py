"""What merchants connect to, and what a merchant may be called."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import TypeAdapter, ValidationError

from fedrec.errors import InputError
from fedrec.merchant import MerchantFile

__all__ = ["DEFAULT_PORT", "Address", "is_merchant_name", "parse_address"]

DEFAULT_PORT = 8443

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)({_LABEL}\.)*(?!\d+\Z){_LABEL}", re.ASCII)
_NAME: TypeAdapter[str] = TypeAdapter(Annotated[str, MerchantFile.model_fields["name"]])


@dataclass(frozen=True)
class Address:
    """A host and a port that merchants can connect to.

    Attributes:
        host: a DNS name in lower case, or an IP address; an IPv6 address without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def listen(self) -> str:
        """The interface to listen on: all of them, unless the host is this machine's loopback."""
        if self.host == "localhost":
            return "127.0.0.1"
        try:
            ip = ipaddress.ip_address(self.host)
        except ValueError:
            return "0.0.0.0"
        if ip.is_loopback:
            return self.host
        return "::" if ip.version == 6 else "0.0.0.0"


def parse_address(text: str, default_port: int = DEFAULT_PORT, where: str = "--server") -> Address:
    """Read `HOST[:PORT]`, an IPv6 host in brackets.

    Raises:
        InputError: it is not an address that another machine could connect to.
    """
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", text, re.ASCII)
    plain = re.fullmatch(r"([^:\[\]]*)(?::([0-9]{1,5}))?", text, re.ASCII)
    found = bracketed or plain
    if found is None:
        raise InputError(f"found {text!r}", where=where, expected="HOST or HOST:PORT, an IPv6 host in brackets")
    port = int(found[2]) if found[2] else default_port
    if not 1 <= port <= 65535:
        raise InputError(f"found port {port}", where=where, expected="a port from 1 to 65535")
    try:
        ip = ipaddress.ip_address(found[1])
    except ValueError:
        if bracketed or not _HOST_NAME.fullmatch(found[1]):
            raise InputError(f"found host {found[1]!r}", where=where, expected="a DNS name or an IP address") from None
        return Address(found[1].lower(), port)
    if (ip.version == 6) != bool(bracketed) or getattr(ip, "ipv4_mapped", None) or ip.is_unspecified or ip.is_multicast:
        raise InputError(f"found host {found[1]!r}", where=where, expected="the address that merchants connect to")
    return Address(str(ip), port)


def is_merchant_name(name: str) -> bool:
    """Whether `merchant.toml` would accept `name`."""
    try:
        _NAME.validate_python(name)
    except ValidationError:
        return False
    return True
