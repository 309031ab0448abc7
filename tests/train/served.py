"""A server that speaks as vLLM and SGLang do, over real HTTP, and runs a tiny model in this process."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from transformers import PreTrainedModel

from tests.train.acting import TOKENS, own_logps, prompts
from tiebreak.models.adapter_folder import load_adapter
from tiebreak.models.generate import generate
from tiebreak.models.load import load_causal, save_model
from tiebreak.records import InputError
from tiebreak.train.rollouts import Rolled, Rollout, roll
from tiebreak.train.serving import Server

EOS = TOKENS.eos_token_id
HOW = Rollout(n=3, max_new_tokens=5)

Twist = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes a choice that is about to be answered, given the request."""


class Vllm:
    """The server: a model from a folder, adapters on it by name, and the log of what it was asked.

    ``deaf`` takes new weights and goes on with the old ones, ``raw`` gives log-probs from before the temperature,
    ``refuse`` is the status of every request to a path, ``lives`` how many completions it gives before all fail.
    """

    def __init__(
        self,
        folder: Path,
        *,
        deaf: bool = False,
        raw: bool = False,
        twist: Twist | None = None,
        refuse: Mapping[str, int] | None = None,
        lives: float = math.inf,
    ) -> None:
        self.base, self.deaf, self.raw, self.twist, self.lives = folder, deaf, raw, twist, lives
        self.refuse = refuse or {}
        self.models: dict[str, PreTrainedModel] = {"start": load_causal(folder).model}
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str] = set()

    def __enter__(self) -> Vllm:
        started = threading.Event()

        async def serve() -> None:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            app = web.Application()
            app.router.add_post("/{path:.*}", self._answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            started.set()
            await self._over.wait()
            await runner.cleanup()

        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [body for where, body in self.log if where == path]

    async def _answer(self, request: web.Request) -> web.Response:
        path, body = request.path, await request.json()
        self.log.append((path, body))
        self.keys.add(request.headers.get("Authorization", ""))
        status = self.refuse.get(path, 200 if self.lives > 0 else 500)
        if status != 200:
            return web.json_response({"error": {"message": "scripted"}}, status=status)
        match path:
            case "/v1/completions":
                self.lives -= 1
                model = self.models.get(body["model"])
                found = self._complete(model, body) if model else {"error": {"message": "no such model"}}
                return web.json_response(found, status=200 if model else 404)
            case "/v1/load_lora_adapter":
                loaded = load_adapter(body["lora_path"], base=str(self.base)).model
                self.models[body["lora_name"]] = self.models["start"] if self.deaf else loaded
                return web.Response(text="Success: LoRA adapter added successfully.")
            case "/v1/unload_lora_adapter":
                return web.json_response({}, status=200 if self.models.pop(body["lora_name"], None) else 404)
            case "/update_weights_from_disk":
                if not self.deaf:
                    self.models["start"] = load_causal(body["model_path"]).model
                return web.json_response({"success": True, "message": ""})
        return web.json_response({"detail": "Not Found"}, status=404)

    def _complete(self, model: PreTrainedModel, body: dict[str, Any]) -> dict[str, Any]:
        prompt, at = tuple(body["prompt"]), body["temperature"]
        most, seed = body["max_tokens"], str(body["seed"])
        ((one,),) = generate(model, [prompt], [seed], max_new_tokens=most, temperature=at, eos=EOS, pad=1)
        ids = [*one.ids, EOS] if one.finish == "stop" else list(one.ids)
        logps = list(one.logps)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        if self.raw:
            logps = logits.log_softmax(-1)[range(len(ids)), ids].tolist()
        best = (logits[0] / (1.0 if self.raw else at or 1.0)).log_softmax(-1).topk(max(1, body["logprobs"]))
        tops = {f"token_id:{i}": p for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)}
        choice = {
            "index": 0,
            "finish_reason": one.finish,
            "token_ids": ids,
            "logprobs": {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": logps, "top_logprobs": [tops]},
        }
        if self.twist:
            self.twist(choice, body)
        return {"choices": [choice]}


def saved(model: PreTrainedModel, folder: Path) -> Path:
    save_model(model, TOKENS, folder / "start")
    return folder / "start"


def client(server: Vllm, model: PreTrainedModel, **more: Any) -> Server:
    settings = {"refresh": "none", "backoff": 0.001, "seed": 3, "folder": server.base.parent / "serving", **more}
    return Server(model, TOKENS, settings.pop("how", HOW), endpoint=server.url, served="start", **settings)


def rolls(source: Server, count: int = 2, *, n: int = 3, temperature: float = 1.0, turn: str = "0.0") -> list[Rolled]:
    return roll(source, TOKENS, prompts(count), n=n, temperature=temperature, turn=turn)


def gap(model: PreTrainedModel, rolled: Sequence[Rolled], temperature: float = 1.0) -> float:
    """The largest difference between the log-probs that came with the draws and those of ``model``."""
    own = own_logps(model, [one.tree for one in rolled], temperature)
    return float((own - torch.cat([one.sampled for one in rolled])).abs().max())


def moved(model: PreTrainedModel, by: float = 0.05) -> PreTrainedModel:
    """Change the weights that are trained, as an optimizer does."""
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def told(server: Vllm, model: PreTrainedModel, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        rolls(client(server, model, **{"retries": 1, **more}), temperature=more.pop("temperature", 1.0))
    assert "\n" not in str(error.value)
    return str(error.value)


def change(**more: Any) -> Twist:
    def twist(choice: dict[str, Any], body: dict[str, Any]) -> None:
        for name, value in more.items():
            (choice if name in choice else choice["logprobs"])[name] = value

    return twist
