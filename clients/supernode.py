"""Flower's SuperNode as a child of the merchant's process: it does not outlive it.

Nor does it follow redirects, as Flower's client would: a server could send a merchant's
signed requests to any address, unencrypted ones included.
"""

from __future__ import annotations

import sys
from functools import partialmethod

import httpx
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supernode.cli.flower_supernode import flower_supernode

if __name__ == "__main__":
    httpx.Client.send = partialmethod(httpx.Client.send, follow_redirects=False)  # type: ignore[method-assign,assignment]
    start_parent_process_monitor(int(sys.argv.pop(1)))
    flower_supernode()
