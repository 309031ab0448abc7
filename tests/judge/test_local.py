"""A local model answers as a server does: exact log-probs, batches nobody notices, a loop that stays free."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_chat import GEMMA, made
from tests.models.tiny import GROUPED, causal
from tiebreak.endpoint import Reply, Unanswered
from tiebreak.judge.local import Local
from tiebreak.models.load import Loaded, build_causal, save_model
from tiebreak.records import InputError

Chat = list[dict[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    loaded = causal("llama")
    where = tmp_path_factory.mktemp("models") / "judge"
    save_model(loaded.model, loaded.tokenizer, where)
    return str(where)


def chats(count: int = 6) -> list[Chat]:
    """Chats of unequal length; neighbours show two answers in both orders."""
    shown = [(f"The cat {'sat ' * i}.", "It left.") for i in range(count // 2)]
    return [asked(f"1 - {a}\n\n2 - {b}") for pair in shown for a, b in (pair, pair[::-1])]


def asked(text: str) -> Chat:
    return [{"role": "user", "content": text}]


def ask_all(local: Local, every: list[Chat], **more: Any) -> list[Reply]:
    settings = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 5, **more}

    async def run() -> list[Reply]:
        return list(await asyncio.gather(*(local.chat(chat, **settings) for chat in every)))

    return asyncio.run(run())


def plain_top(loaded: Loaded, chat: Chat, count: int = 5) -> dict[str, float]:
    text = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        logps = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    found: dict[str, float] = {}
    for token in logps.topk(count).indices.tolist():  # bytes that are no text alone read the same and add up
        text = loaded.tokenizer.decode([token])
        found[text] = math.log(math.exp(found.get(text, -math.inf)) + float(logps[token].exp()))
    return found


@contextmanager
def passes(local: Local) -> Iterator[list[int]]:
    """How many tokens each pass of the model reads."""
    seen: list[int] = []
    embed = local._voice.model.get_input_embeddings()
    hook = embed.register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    try:
        yield seen
    finally:
        hook.remove()


def test_every_reply_of_a_batch_has_the_plain_models_log_probs(folder: str) -> None:
    loaded, local, every = causal("llama"), Local(model=folder), chats()
    for chat, reply in zip(every, ask_all(local, every), strict=True):
        assert reply.tokens is not None
        expected = plain_top(loaded, chat)
        assert dict(reply.tokens[0].top) == pytest.approx(expected, abs=1e-5)
        assert reply.text == reply.tokens[0].text in expected
        assert (reply.tokens_out, reply.price, reply.finish) == (1, None, "length")
        assert reply.latency > 0


def test_a_reply_does_not_depend_on_the_batch_it_was_in(folder: str) -> None:
    every = chats()
    for temperature in (0.0, 1.0):
        together = ask_all(Local(model=folder), every, max_tokens=4, temperature=temperature)
        alone = ask_all(Local(model=folder, batch=1), every[::-1], max_tokens=4, temperature=temperature)[::-1]
        for one, other in zip(together, alone, strict=True):
            assert (one.text, one.tokens_in, one.finish) == (other.text, other.tokens_in, other.finish)
            assert one.tokens is not None
            assert other.tokens is not None
            for here, there in zip(one.tokens, other.tokens, strict=True):
                assert here.text == there.text
                assert here.top == pytest.approx(there.top, abs=1e-5)


def test_attempts_differ_only_where_something_is_drawn(folder: str) -> None:
    local, chat = Local(model=folder), chats()[0]
    texts = {
        temperature: [
            ask_all(local, [chat], max_tokens=8, temperature=temperature, attempt=n)[0].text for n in (0, 1, 0)
        ]
        for temperature in (0.0, 1.0)
    }
    assert len(set(texts[0.0])) == 1
    assert texts[1.0][0] == texts[1.0][2] != texts[1.0][1]


def test_chats_asked_in_one_breath_are_one_batch_and_share_what_they_begin_with(folder: str) -> None:
    local, stem = Local(model=folder, batch=4), "Read all of this. " * 3
    every = [asked(f"{stem}{i}") for i in range(8)]
    sizes = [reply.tokens_in or 0 for reply in ask_all(local, every)]
    with passes(local) as seen:
        ask_all(local, every)
    assert len(seen) == 2
    assert sum(seen) < sum(sizes) / 2


def test_chats_of_other_lengths_and_temperatures_are_not_mixed_up(folder: str) -> None:
    local, chat = Local(model=folder), chats()[0]

    async def run() -> list[Reply]:
        kinds = [(1, 0.0), (5, 0.0), (5, 1.0), (1, 0.0)]
        return list(await asyncio.gather(*(local.chat(chat, max_tokens=n, temperature=t) for n, t in kinds)))

    replies = asyncio.run(run())
    assert [reply.tokens for reply in replies] == [None] * 4
    assert replies[0].text == replies[3].text
    assert replies[1].text.startswith(replies[0].text)
    assert replies[2].text != replies[1].text


def test_the_loop_goes_on_while_the_model_computes(folder: str) -> None:
    local = Local(model=folder)
    ask_all(local, chats())
    begun, gate = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        begun.set()
        assert gate.wait(60)

    async def run() -> Reply:
        task = asyncio.create_task(local.chat(chats()[0], max_tokens=1, temperature=0.0))
        while not begun.is_set():
            await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        return await task

    hook = local._voice.model.get_input_embeddings().register_forward_pre_hook(wait)
    assert asyncio.run(run()).tokens_out == 1
    hook.remove()


def test_several_loops_one_after_the_other_and_at_once(folder: str) -> None:
    local, every = Local(model=folder), chats()
    expected = [reply.text for reply in ask_all(local, every, max_tokens=3)]
    asyncio.run(local.close())
    assert [reply.text for reply in ask_all(local, every, max_tokens=3)] == expected
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: [r.text for r in ask_all(local, every, max_tokens=3)], range(6)))
    asyncio.run(local.close())
    assert found == [expected] * 6


def test_a_chat_that_is_called_off_is_not_computed(folder: str) -> None:
    local = Local(model=folder, batch=8)
    ask_all(local, chats())

    async def run() -> Reply:
        gone = [asyncio.create_task(local.chat(chat, max_tokens=1, temperature=0.0)) for chat in chats()]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        return await local.chat(asked("Here."), max_tokens=1, temperature=0.0)

    with passes(local) as seen:
        reply = asyncio.run(run())
    assert seen == [reply.tokens_in]


def test_a_reply_that_nobody_waits_for_any_more_is_not_written_to_its_end(folder: str) -> None:
    local, gate = Local(model=folder), threading.Event()
    ask_all(local, chats())

    async def run() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(local.chat(chats()[0], max_tokens=50, temperature=1.0))

        def third(*_: object) -> None:
            if len(seen) == 3:
                loop.call_soon_threadsafe(task.cancel)
                assert gate.wait(60)

        hook = local._voice.model.get_input_embeddings().register_forward_pre_hook(third)
        await asyncio.wait([task])
        assert task.cancelled()
        gate.set()
        hook.remove()
        await local.chat(chats()[0], max_tokens=1, temperature=0.0)

    with passes(local) as seen:
        asyncio.run(run())
    assert len(seen) == 4


def test_a_chat_longer_than_the_window_fails_alone(folder: str) -> None:
    every = [chats()[0], asked("too long " * 60), chats()[1]]

    async def run(local: Local) -> list[Any]:
        return await asyncio.gather(
            *(local.chat(chat, max_tokens=2, temperature=0.0) for chat in every), return_exceptions=True
        )

    for local, room in ((Local(model=folder), 128), (Local(model=folder, window=100), 100)):
        first, second, third = asyncio.run(run(local))
        assert isinstance(second, Unanswered)
        assert f"has {room}; shorten the" in str(second)
        assert second.why == "longer than the window"
        assert isinstance(first, Reply)
        assert isinstance(third, Reply)


def test_a_text_the_template_cannot_write_fails_alone_and_roles_it_refuses_fail_all(tmp_path: Path) -> None:
    tokenizer = made(GEMMA.replace("message['content'] | trim", "message['content'] | upper"), "<eos>", bos="<bos>")
    loaded = build_causal({"model_type": "llama", **GROUPED}, tokenizer, seed=0)
    save_model(loaded.model, tokenizer, tmp_path / "m")
    local = Local(model=str(tmp_path / "m"))
    with pytest.raises(Unanswered, match="text of a control token"):
        ask_all(local, [asked("say <eos> now")])
    with pytest.raises(InputError, match="System role not supported") as refused:
        ask_all(local, [[{"role": "system", "content": "Judge."}, *asked("Which?")]])
    assert not isinstance(refused.value, Unanswered)


def test_what_is_wrong_with_a_model_reaches_who_asked(tmp_path: Path) -> None:
    loaded = causal("llama")
    torch.nn.init.constant_(loaded.model.lm_head.weight, math.nan)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "m")
    with pytest.raises(InputError, match="not finite"):
        ask_all(Local(model=str(tmp_path / "m")), chats())
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        ask_all(Local(model=str(tmp_path / "m")), chats())


def test_what_a_local_model_cannot_do_is_refused(folder: str) -> None:
    local = Local(model=folder)
    with pytest.raises(InputError, match="cannot be held to a schema"):
        ask_all(local, chats(), schema={"type": "object"})
    for more in ({"max_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(InputError, match="expected 1 or more"):
            ask_all(local, chats(), **more)
    with pytest.raises(InputError, match="128 tokens leaves no room for a question in the 128 tokens") as refused:
        ask_all(local, chats(), max_tokens=128)
    assert not isinstance(refused.value, Unanswered)


def test_a_begun_answer_is_gone_on_with(folder: str) -> None:
    local, loaded = Local(model=folder), causal("llama")
    chat = [*asked("Which?"), {"role": "assistant", "content": "Preferred Answer="}]
    (reply,) = ask_all(local, [chat], continue_final=True)
    text = loaded.tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    cue = text.index(" Preferred")
    parts = [loaded.tokenizer.encode(part, add_special_tokens=False) for part in (text[:cue], text[cue:])]
    with torch.no_grad():
        logps = loaded.model(input_ids=torch.tensor([parts[0] + parts[1]])).logits[0, -1].log_softmax(-1)
    assert reply.tokens is not None
    assert reply.tokens[0].text == loaded.tokenizer.decode([int(logps.argmax())])
    assert reply.tokens[0].top[reply.tokens[0].text] == pytest.approx(float(logps.max()), abs=1e-5)
