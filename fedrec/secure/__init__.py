"""Secure aggregation: a server opens the sum of integers, and learns nothing else about them."""

from fedrec.secure.collector import Collector
from fedrec.secure.graph import Neighbours, neighbours, quorum
from fedrec.secure.lattice import Lattice, finest
from fedrec.secure.member import Announcement, Revealed, State, announce, confirm, forgetful, hold, mask, reveal, share
from fedrec.secure.terms import Refused, Roster, Terms

__all__ = [
    "Announcement",
    "Collector",
    "Lattice",
    "Neighbours",
    "Refused",
    "Revealed",
    "Roster",
    "State",
    "Terms",
    "announce",
    "confirm",
    "finest",
    "forgetful",
    "hold",
    "mask",
    "neighbours",
    "quorum",
    "reveal",
    "share",
]
