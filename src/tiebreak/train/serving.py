"""Rollouts from a server: vLLM or SGLang completes the prompts, and is handed the weights as the policy learns.

Token ids go out and come back with the log-prob of each, so nothing is tokenised twice. The trainer looks at every
token again: what the server held of it and what the policy holds of it give the weight that corrects the gradient
(truncated importance sampling, Yao et al. 2025), and the gap is logged.

What is asked for, and where a server's side of it is written:

* ``/v1/completions`` with ids as ``prompt``, ``logprobs`` and ``return_token_ids``: vLLM's
  ``entrypoints/openai/completion/protocol.py``, SGLang's ``srt/entrypoints/openai/protocol.py``;
* ``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``: vLLM's ``docs/features/lora.md``;
* ``/update_weights_from_disk``: SGLang's ``docs/advanced_features/sglang_for_rl.md``.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiebreak.endpoint import Endpoint, finish, together
from tiebreak.models.adapter_folder import save_adapter
from tiebreak.models.adapters import Adapter
from tiebreak.models.generate import Drawn
from tiebreak.models.load import save_model
from tiebreak.records import InputError, content_id
from tiebreak.registry import nearest
from tiebreak.train import checkpoint
from tiebreak.train.rollouts import Asked, Rollout

Result = TypeVar("Result")
Ended = tuple[Drawn, int | None]
"""A completion, and the token that ended it where that is not EOS."""

REFRESHES = ("lora", "disk", "none")
"""How a server gets the weights: an adapter (vLLM), a whole model on disk (SGLang), or not at all."""

ABOVE = 1e-3
"""What rounding may put a log-prob above 0; raw logits go further."""
BLUR = 0.1
"""What rounding may add to the spread of log-probs of a model in bfloat16."""
PATIENCE = 30.0
"""Seconds that a server which is left may take to let go of an adapter."""

KEPT = "the training goes on from its last checkpoint"

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Server:
    """A server with the policy's weights, as the source of its rollouts.

    It draws with the weights that the policy has at each call: where they changed since the last one they are handed
    over first, whoever changed them. Each draw is a request of its own with a seed of its own, for SGLang gives all
    completions of one request the same seed. A server's sums depend on what else it computes at the time, so draws
    are not the same from run to run.

    Args:
        model: the policy, which the loop changes in place.
        tokenizer: of the policy.
        how: length of completions.
        endpoint: the server's address, ending in ``/v1``.
        served: the name under which the server has the start of the training.
        folder: holds what is handed over for as long as the server needs it; the server has to see the same path.
        seed: of all draws.
        adapter: what the loop puts on the model, if anything.
        refresh: one of REFRESHES; ``lora`` for an adapter and ``disk`` for a whole model when missing.
        key_env: names the environment variable with the server's key; without it none is sent.
        concurrency: requests in flight.
        timeout: seconds for one request.
        retries: how often a request is repeated after 429, 5xx, a timeout or a lost connection.
        backoff: seconds of the first wait at most; each further one is twice as long.

    Raises:
        InputError: no such refresh, or one that does not go with what is trained; an address that is none.
    """

    exact = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        how: Rollout,
        *,
        endpoint: str,
        served: str,
        folder: Path,
        seed: int,
        adapter: Adapter | None = None,
        refresh: str | None = None,
        key_env: str | None = None,
        concurrency: int = 256,
        timeout: float = 600.0,
        retries: int = 6,
        backoff: float = 0.5,
    ) -> None:
        self.model, self.eos, self.tokenizer, self.how = model, tokenizer.eos_token_id, tokenizer, how
        self.served, self.folder, self.seed, self.adapter = served, folder.resolve(), seed, adapter
        self.refresh = _settled(refresh, adapter)
        self._client = Endpoint(
            endpoint,
            served,
            # Unseeded: waits enter no result, and two processes must not wait in step.
            rng=random.Random(),
            key_env=key_env,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
        )
        self._mine, self._versions = uuid.uuid4().hex[:8], 0
        self._given, self._loaded = "", ""
        self._tempered = {0.0, 1.0}

    def draw(self, asked: Sequence[Asked], *, n: int, temperature: float, turn: str) -> list[list[Drawn]]:
        """Draw with the weights as they are now, handed over if the server has others.

        Raises:
            InputError: the server is gone or refuses, or gives no token ids or no log-probs of the tempered policy.
        """
        return finish(self._draw(asked, n, temperature, turn)) if asked else []

    def close(self) -> None:
        """Take the adapter off the server and the folder off the disk; a server that is gone is left in peace."""

        async def leave() -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._take_back(), PATIENCE)
            await self._client.close()

        finish(leave())
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _draw(self, asked: Sequence[Asked], n: int, temperature: float, turn: str) -> list[list[Drawn]]:
        each = n if temperature else 1  # the likeliest tokens are the same every time
        try:
            await self._hand_over()
            await self._assert_tempered(asked[0], temperature)
            said = await together(self._complete(one, temperature, turn, draw) for one in asked for draw in range(each))
        finally:
            await self._client.close()
        self._assert_ends(said)
        drawn = [one for one, _ in said]
        return [drawn[start : start + each] * (n // each) for start in range(0, len(drawn), each)]

    async def _complete(self, one: Asked, temperature: float, turn: str, draw: int) -> Ended:
        name = content_id("draw", self.seed, f"{one.prompt.id}/{turn}", draw)
        seed = int(name, 16) % 2**31  # which every server takes
        return await self._ask({**self._body(one, temperature), "seed": seed}, self._read)

    async def _ask(self, body: Mapping[str, Any], read: Callable[[str, float], Result | None]) -> Result:
        cure = f"correct what it names; it has to serve {self.served!r} and take token ids, as vLLM and SGLang do"
        return await self._client.post("completions", body, read, cure=cure, kept=KEPT)

    def _body(self, one: Asked, temperature: float) -> dict[str, Any]:
        """Return a request that says all that a server would else take from the model's folder.

        vLLM fills in what is not sent from ``generation_config.json``, and stops at the tokens named there too. With
        ``ignore_eos`` it stops at the tokenizer's EOS alone, as the policy in this process does; SGLang would then not
        stop at all. ``return_tokens_as_token_ids`` is for a vLLM older than ``return_token_ids``.
        """
        body: dict[str, Any] = {
            "model": self._loaded or self.served,
            "prompt": list(one.ids),
            "n": 1,
            "max_tokens": self.how.max_new_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_tokens": self.how.min_new_tokens,
            "stop_token_ids": [self.eos],
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        return {**body, "ignore_eos": True} if self.refresh == "lora" else body

    def _read(self, text: str, seconds: float) -> Ended:
        """Tell by the tokens how a completion ended: SGLang calls one too long that ends with EOS at the limit."""
        choice = json.loads(text)["choices"][0]
        logprobs, reason = choice.get("logprobs") or {}, choice["finish_reason"]
        if reason not in ("stop", "length"):
            raise ValueError(reason)  # cut off from outside, as when a server goes down: no draw of the policy
        ids, logps = choice.get("token_ids") or _named(logprobs.get("tokens")), logprobs.get("token_logprobs")
        if not ids:
            raise self._fault(
                "returned no token ids, and its text would become other tokens; use vLLM 0.10.2 or later, or an SGLang "
                "that knows return_token_ids, without a proxy between"
            )
        if not logps:
            raise self._fault(
                "returned no log-probs, which tell how far its policy is from the one that learns; start it so that "
                "it gives them (vLLM: --max-logprobs 20), without a proxy between"
            )
        if len(ids) != len(logps):
            raise self._fault(f"returned {len(ids)} token ids with {len(logps)} log-probs; use another version of it")
        if not all(isinstance(logp, float | int) and math.isfinite(logp) for logp in logps):
            raise self._fault("returned a log-prob that is no finite number; its weights have overflowed or are broken")
        if max(logps) > ABOVE:
            raise self._fault(
                f"returned {max(logps):.3g} as a log-prob; start vLLM with --logprobs-mode processed_logprobs"
            )
        if not 0 <= min(ids) <= max(ids) < (known := self.model.get_input_embeddings().num_embeddings):
            raise self._fault(
                f"returned the token {max(ids)}, and the policy knows {known}; serve the model the training starts from"
            )
        stop = ids[-1] == self.eos
        kept, finish = tuple(ids[:-1] if stop else ids), "stop" if stop else "length"
        return Drawn(kept, finish, tuple(map(float, logps))), ids[-1] if reason == "stop" and not stop else None

    def _fault(self, what: str) -> InputError:
        return InputError(f"The endpoint {self._client.name} {what}.")

    def _assert_ends(self, said: Sequence[Ended]) -> None:
        """Refuse a server that ends a tenth of the answers at other tokens and none by EOS; a few count as cut off."""
        odd = [token for _, token in said if token is not None]
        if len(odd) > len(said) / 10 and not any(drawn.finish == "stop" for drawn, _ in said):
            raise self._fault(
                f"ends answers at token {odd[0]} and never at the tokenizer's EOS, {self.eos}; serve a folder that "
                "tiebreak saved, and start vLLM with --generation-config vllm"
            )

    async def _assert_tempered(self, one: Asked, temperature: float) -> None:
        """Refuse log-probs from before the temperature, which vLLM gives unless told otherwise.

        Differences of log-probs are those at 1 over the temperature where it is in them, and the same where it is not;
        where rounding hides which, the next draw is asked again.
        """
        if temperature in self._tempered:
            return
        plain, warm = [await self._spread(one, at) for at in (1.0, temperature)]
        same, scaled = abs(plain - warm), abs(plain - warm * temperature)
        if same + BLUR < scaled:
            raise self._fault(
                f"returns log-probs from before the temperature of {temperature:g}; start vLLM with --logprobs-mode "
                "processed_logprobs, and SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB"
            )
        if scaled + BLUR < same:
            self._tempered.add(temperature)

    async def _spread(self, one: Asked, temperature: float) -> float:
        """Return how far the log-probs of the 20 likeliest first tokens lie apart."""

        def read(text: str, seconds: float) -> float:
            near = json.loads(text)["choices"][0]["logprobs"]["top_logprobs"][0].values()
            best = sorted(near, reverse=True)[:20]
            return float(best[0] - best[-1])

        asks = {"max_tokens": 1, "min_tokens": 0, "logprobs": 20, "seed": 0}
        return await self._ask({**self._body(one, temperature), **asks}, read)

    async def _hand_over(self) -> None:
        """Give the server the weights of the policy where it has others."""
        if self.refresh == "none" or (mark := mark_of_weights(self.model)) == self._given:
            return
        self._given = ""
        await (self._give_adapter() if self.refresh == "lora" else self._give_model())
        self._given = mark

    async def _give_adapter(self) -> None:
        """Load the adapter under a name that was never used.

        vLLM keeps what it computed of a prompt by the adapter's name, so one that is replaced in place would answer
        with old keys and values. The old one goes first: there may be room for one only.
        """
        name = f"tiebreak-{self._mine}-{self._versions}"
        self._versions += 1
        with _written(self.folder):
            save_adapter(self.model, self.tokenizer, self.folder / name, base=self.served)
        await self._take_back()
        rank = self.adapter.rank if self.adapter else 0
        cure = (
            f"start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and --max-lora-rank {rank} or more, "
            f"where it can read {self.folder}"
        )
        body = {"lora_name": name, "lora_path": str(self.folder / name)}
        await self._client.post("load_lora_adapter", body, _text, cure=cure, kept=KEPT)
        self._loaded = name

    async def _take_back(self) -> None:
        """Unload the adapter; one that the server does not have, as after a restart, is as good as unloaded."""
        name, self._loaded, self._given = self._loaded, "", ""
        if name:
            with suppress(InputError):
                await self._client.post("unload_lora_adapter", {"lora_name": name}, _text, retries=0)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    async def _give_model(self) -> None:
        where = self.folder / "model"
        with _written(self.folder):
            save_model(self.model, self.tokenizer, where)
        cure = (
            f"only SGLang loads whole models while it runs, where it can read {where}; with vLLM train an adapter, "
            "which goes by refresh: lora, or set refresh: none"
        )

        def read(text: str, seconds: float) -> bool:
            return bool(json.loads(text)["success"])

        body = {"model_path": str(where)}
        if not await self._client.post("/update_weights_from_disk", body, read, cure=cure, kept=KEPT):
            raise self._fault(f"could not load the weights in {where}; serve the model the training starts from")
        shutil.rmtree(where, ignore_errors=True)


def mark_of_weights(model: PreTrainedModel) -> str:
    """Return a name for the weights that training changes: of the sums of their bits, which an update changes."""
    weights = checkpoint.trained(model).values()
    return content_id("weights", [int(w.detach().view(_BITS[w.element_size()]).sum()) for w in weights])


def _settled(refresh: str | None, adapter: Adapter | None) -> str:
    """Return how the weights are handed over; what cannot be is refused before anything is drawn."""
    refresh = refresh or ("lora" if adapter else "disk")
    if refresh not in REFRESHES:
        near = nearest(refresh, REFRESHES)
        raise InputError(f"There is no refresh {refresh!r}; there are {', '.join(REFRESHES)}.{near}")
    if refresh == "lora" and adapter is None:
        raise InputError("refresh: lora hands over an adapter, and all weights are trained; set adapter, or disk.")
    if refresh == "disk" and adapter is not None:
        raise InputError("refresh: disk hands over a whole model, and an adapter is trained; set refresh: lora.")
    if refresh == "lora" and adapter is not None and adapter.kind == "dora":
        raise InputError("refresh: lora hands over plain adapters, for vLLM serves no dora; set the adapter's kind.")
    return refresh


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = f"The weights for the server cannot be written to {folder}: {error}; free some space and run again."
        raise InputError(told) from error


def _named(tokens: Sequence[str] | None) -> list[int]:
    """Return the ids of tokens written as ``token_id:7``, none where they are texts."""
    named = [token.removeprefix("token_id:") for token in tokens or () if token.startswith("token_id:")]
    return list(map(int, named)) if len(named) == len(tokens or ()) else []


def _text(text: str, seconds: float) -> str:
    return text
