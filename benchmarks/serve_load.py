"""Load on a service, from a process of its own: so many clients without a pause, or so many requests a second.

A client here is a connection that writes bytes and reads an answer; an HTTP library would take more of a processor than the
service does. At a given rate a request counts from when it was due: one that had to wait for a connection waited.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

__all__ = ["main"]


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head[9:12])


async def _closed(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], list[int], float]:
    turn, took, statuses = itertools.cycle(requests), list[float](), list[int]()
    begun = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (at := time.perf_counter()) - begun < seconds:
            statuses.append(await _ask(reader, writer, next(turn)))
            took.append(time.perf_counter() - at)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return took, statuses, time.perf_counter() - begun


async def _rate(port: int, requests: list[bytes], a_second: float, seconds: float) -> tuple[list[float], list[int], float]:
    turn, took, statuses = itertools.cycle(requests), list[float](), list[int]()
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(64):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    begun = time.perf_counter()

    async def one(due: float) -> None:
        pair = await free.get()
        statuses.append(await _ask(*pair, next(turn)))
        took.append(time.perf_counter() - due)
        free.put_nowait(pair)

    tasks = []
    for number in range(int(a_second * seconds)):
        due = begun + number / a_second
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return took, statuses, time.perf_counter() - begun


def main() -> None:
    """Read what to do from stdin as JSON, and print what it took as JSON."""
    given: dict[str, Any] = json.load(sys.stdin)
    requests = []
    for path, body in given["requests"]:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        requests.append(head.encode() + content)
    if given["rate"]:
        found = asyncio.run(_rate(given["port"], requests, given["rate"], given["seconds"]))
    else:
        found = asyncio.run(_closed(given["port"], requests, given["clients"], given["seconds"]))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
