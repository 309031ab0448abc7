"""Clients and calls that the tests of this room share."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

from tiebreak.endpoint import Endpoint

SLOTS = "Summary 1 - long one\n\nSummary 2 - short\n\n"


def client(url: str, **settings: Any) -> Endpoint:
    """A client of the scripted server, without a key and with short waits."""
    return Endpoint(url, "scripted", **{"rng": random.Random(0), "backoff": 0.001, "key_env": None, **settings})


def ask(endpoint: Endpoint, n: int = 1, *, errors: bool = False, same: bool = False, **settings: Any) -> list[Any]:
    """Make ``n`` calls at once, all different or all the same; return the replies, with ``errors`` those as well."""

    async def all_of_them() -> list[Any]:
        calls = (
            endpoint.chat(
                [{"role": "user", "content": f"{SLOTS}{0 if same else i}"}],
                **{"max_tokens": 5, "temperature": 0.0, **settings},
            )
            for i in range(n)
        )
        try:
            return await asyncio.gather(*calls, return_exceptions=errors)
        finally:
            await endpoint.close()

    return asyncio.run(all_of_them())


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
