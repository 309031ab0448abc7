"""Who speaks for a judge: a model on a server, or one of Hugging Face computed here. Both take the same calls.

Torch comes with the first chat of a local model; a folder that cannot chat is refused before, by its configuration.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tiebreak.endpoint import Endpoint, Reply
from tiebreak.judge.table import WHO
from tiebreak.records import InputError

SERVED = ("key_env", "timeout", "retries", "price_in", "price_out", "rpm", "tpm")
LOCAL = ("device", "batch", "window")
"""Knobs that mean something for a server alone, and for a local model alone."""

MUTE = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining")
"""How the classes of models end that read but do not write."""

Messages = Sequence[Mapping[str, str]]


class Speaker(Protocol):
    """A model that answers chats, wherever it is computed.

    ``by`` is ``model:NAME@REVISION``, as judgments record it. ``client`` is the connection to a server, None for a
    local model.
    """

    @property
    def by(self) -> str:
        """Who judges, as judgments record it."""
        ...

    @property
    def client(self) -> Endpoint | None:
        """The connection to a server, None for a local model."""
        ...

    async def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        logprobs: bool = False,
        top_logprobs: int = 20,
        continue_final: bool = False,
        schema: Mapping[str, Any] | None = None,
        attempt: int = 0,
    ) -> Reply:
        """Return the reply to ``messages``; ``attempt`` tells equal requests apart."""
        ...

    async def close(self) -> None:
        """Let go of connections; a later ``chat`` opens them again."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """A model on a server."""

    client: Endpoint
    by: str

    async def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        logprobs: bool = False,
        top_logprobs: int = 20,
        continue_final: bool = False,
        schema: Mapping[str, Any] | None = None,
        attempt: int = 0,
    ) -> Reply:
        """Return the server's reply to ``messages``."""
        return await self.client.chat(
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            continue_final=continue_final,
            schema=schema,
            attempt=attempt,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()


def speaker(
    *,
    endpoint: str = "",
    model: str = "",
    revision: str = "",
    key_env: str | None = "OPENAI_API_KEY",
    timeout: float = 120.0,
    retries: int = 6,
    price_in: float | None = None,
    price_out: float | None = None,
    rpm: float | None = None,
    tpm: float | None = None,
    device: str = "cpu",
    batch: int = 8,
    window: int = 4096,
) -> Speaker:
    """Return who answers for a judge: ``model`` on the server at ``endpoint``, or without one the local ``model``.

    A knob that would do nothing where the model is computed is refused, for its user expects something of it.

    Args:
        endpoint: address of a server that speaks as OpenAI does, up to ``/v1``.
        model: the model's name on that server; a Hugging Face folder or hub name.
        revision: what stands behind the @ in ``by``, else the server's host; of a hub name, a branch, tag or commit.
        key_env: the environment variable with the server's key.
        timeout: seconds for one call of a server.
        retries: how often a call of a server is repeated.
        price_in: US dollars for a million tokens read.
        price_out: US dollars for a million tokens written.
        rpm: requests a minute at most.
        tpm: tokens a minute at most.
        device: where a local model is computed, ``cpu`` or ``cuda``.
        batch: chats computed together at most.
        window: tokens of a chat and its reply at most, fewer where the model has fewer positions.

    Raises:
        InputError: no model, a knob without effect, or a folder that is missing or cannot chat.
    """
    if not model:
        raise InputError(
            "judge: there is no model; write a server's, endpoint=http://localhost:8000/v1 model=NAME, or a local one, "
            "model=FOLDER."
        )
    served: dict[str, Any] = dict(zip(SERVED, (key_env, timeout, retries, price_in, price_out, rpm, tpm), strict=True))
    if endpoint:
        _refuse_idle({"device": device, "batch": batch, "window": window}, f"a model on the server {endpoint}")
        # Unseeded: waits enter no result, and two processes must not wait in step.
        client = Endpoint(endpoint, model, rng=random.Random(), revision=revision, **served)
        return Served(client, f"model:{client.identity}")
    _refuse_idle(served, f"the local model {model}")
    for name, value in (("batch", batch), ("window", window)):
        if value < 1:
            raise InputError(f"judge: {name} is {value}; expected 1 or more.")
    _assert_speaks(model, revision)
    from tiebreak.judge.local import Local

    return Local(model=model, revision=revision or None, device=device, batch=batch, window=window)


def _refuse_idle(given: Mapping[str, Any], whom: str) -> None:
    """Refuse a knob that is set and would do nothing."""
    if idle := [name for name, value in given.items() if value != WHO[name]]:
        other = "a model on a server" if idle[0] in SERVED else "a local model, one without endpoint"
        raise InputError(f"judge: {idle[0]} does nothing for {whom}; leave it out, it is for {other}.")


def _assert_speaks(model: str, revision: str) -> None:
    """Refuse a folder that is missing or cannot chat, by its configuration alone. A hub name is tried when it loads."""
    folder = Path(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1 or folder.exists():
            raise InputError(f"judge: there is no model folder {model}; pass a Hugging Face folder or a hub name.")
        return
    if revision:
        raise InputError(f"judge: revision is {revision!r}, and {model} is a folder, which has none; leave it out.")
    config = folder / "config.json"
    if not config.is_file():
        cure = "merge the adapter into its base first" if (folder / "adapter_config.json").is_file() else "pass a model"
        raise InputError(f"judge: the folder {model} has no config.json, so it is no whole model; {cure}.")
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        kinds = [str(kind) for kind in found.get("architectures") or ()]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"judge: {config} is no configuration of a model ({error}); save the model again.") from error
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise InputError(
            f"judge: the model {model} is a reward model, which has no words to give; by=reward judges with it, or "
            "pass a language model."
        )
    if any(kind.endswith(MUTE) for kind in kinds):
        raise InputError(
            f"judge: the model {model} ({kinds[0]}) is an encoder, which has no words to give; pass a causal language "
            "model such as Llama, Qwen or GPT-2."
        )
