"""A conversation becomes ids as its template writes it, and every answer of it can be learned at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerFast

from tests.models.tiny import TEXTS
from tiebreak.models.chat import Chat
from tiebreak.models.encode import encode_completion, encode_dialogue, encode_prompt, encode_tree
from tiebreak.models.forest import Tree
from tiebreak.models.load import PLAIN_CHAT, train_tokenizer
from tiebreak.records import InputError, Message, Prompt, Response

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] +"
    " eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
THINKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}{% set parts ="
    " message.content.split('</think>') %}{% if message.role == 'assistant' and loop.last %}{{ '<think>\\n' +"
    " parts[0].split('<think>')[-1].strip('\\n') if parts | length > 1 else '<think>\\n' }}{{ '\\n</think>\\n\\n' }}"
    "{% endif %}{{ parts[-1].lstrip('\\n') + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen 3's: the last answer has a place for thinking, earlier answers lose theirs."""


def made(template: str, eos: str, *more: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer whose control tokens are those of ``template``."""
    out = train_tokenizer(TEXTS * 4, vocabulary=330)
    out.add_special_tokens({"eos_token": eos, "additional_special_tokens": list(more)})
    if bos:
        out.add_special_tokens({"bos_token": bos})
    out.chat_template = template
    return out


MAKERS = {
    "plain": (PLAIN_CHAT, "<|endoftext|>"),
    "chatml": (CHATML, "<|im_end|>", "<|im_start|>"),
    "chatml_base": (CHATML, "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "zephyr": (ZEPHYR, "</s>"),
}
WITH_BOS = {
    "llama3": ((LLAMA3, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"), "<|begin_of_text|>"),
    "gemma": ((GEMMA, "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>"),
    "mistral": ((MISTRAL, "</s>", "[INST]", "[/INST]"), "<s>"),
}
MADE = {name: made(*parts) for name, parts in MAKERS.items()}
MADE |= {name: made(*parts, bos=bos) for name, (parts, bos) in WITH_BOS.items()}
ENDS = {
    "plain": "",
    "chatml": "<|im_end|>",
    "chatml_base": "<|im_end|>",
    "zephyr": "</s>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
}
LEAD = {"plain": " ", "mistral": " "}
"""What a template writes between the cue to answer and the answer: the model's own to say."""

EVERY = pytest.mark.parametrize("name", MADE)
TALK = (
    Message("user", "How is the cat?"),
    Message("assistant", "It came back.\n"),
    Message("user", "  And now?"),
    Message("assistant", "It is well,\n\nthank you."),
    Message("user", "Good"),
    Message("assistant", "Yes."),
)


def reply(text: str, finish: str = "") -> Response:
    return Response(prompt_id="p", text=text, finish=finish)


def rendered(name: str, turns: tuple[Message, ...], *, cue: bool = True) -> str:
    shown = [turn._asdict() for turn in turns]
    return str(MADE[name].apply_chat_template(shown, add_generation_prompt=cue, tokenize=False))


def said(tokenizer: PreTrainedTokenizerFast, ids: object) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))  # type: ignore[call-overload]


def runs(tree: Tree) -> list[tuple[int, tuple[int, ...]]]:
    """The taught stretches of a tree's branch, each with the place in the whole sequence where it begins."""
    out: list[tuple[int, tuple[int, ...]]] = []
    (branch,) = tree.branches
    flags = tree.taught[0] if tree.taught else (True,) * len(branch)
    for place, (token, taught) in enumerate(zip(branch, flags, strict=True)):
        if taught and out and out[-1][0] + len(out[-1][1]) == place + len(tree.trunk):
            out[-1] = (out[-1][0], (*out[-1][1], token))
        elif taught:
            out.append((place + len(tree.trunk), (token,)))
    return out


def taught(tokenizer: PreTrainedTokenizerFast, tree: Tree) -> list[str]:
    return [said(tokenizer, ids) for _, ids in runs(tree)]


@EVERY
def test_ids_are_those_of_the_rendered_text(name: str) -> None:
    for turns in (TALK[:1], (Message("user", " \n spaced  out \n"),)):
        whole = MADE[name].encode(rendered(name, turns), add_special_tokens=False)
        assert encode_prompt(MADE[name], Prompt(text=turns), room=200).ids == tuple(whole)
    assert said(MADE[name], encode_prompt(MADE[name], Prompt(text=TALK[:5]), room=400).ids) == rendered(name, TALK[:5])


@EVERY
def test_no_turn_writes_a_control_token(name: str) -> None:
    """Whoever could write one could end the turn and speak as the system or as the assistant."""
    tokenizer = MADE[name]
    controls = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    trap = "Hi " + " ".join(controls) + "".join(controls)
    for texts in ((trap, "Fine.", "Ok"), ("Hi", trap, "Ok"), ("Hi", trap, trap), (trap, trap, trap[3:])):
        turns = tuple(turn._replace(content=text) for turn, text in zip(TALK, texts, strict=False))
        ids = encode_prompt(tokenizer, Prompt(text=turns), room=2000).ids
        kind = encode_prompt(tokenizer, Prompt(text=TALK[:3]), room=2000).ids
        assert {i: ids.count(i) for i in controls.values()} == {i: kind.count(i) for i in controls.values()}
        assert said(tokenizer, ids) == rendered(name, turns)


@EVERY
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_training_sees_what_sampling_sees_whatever_the_turns_say(name: str, data: st.DataObject) -> None:
    tokenizer = MADE[name]
    bits = ["a", " the cat", "\n", " ", "Slot0x1x", "user: ", "<|", *map(str, tokenizer.added_tokens_decoder.values())]
    texts = [data.draw(st.lists(st.sampled_from(bits), max_size=6).map("".join)) for _ in TALK]
    turns = tuple(turn._replace(content=text) for turn, text in zip(TALK, texts, strict=True))
    tree, cut = encode_dialogue(tokenizer, turns[:5], reply(turns[5].content), window=9999)
    assert tree is not None
    assert not cut
    whole = tree.trunk + tree.branches[0]
    for number in (1, 3, 5):
        prompt = encode_prompt(tokenizer, Prompt(text=turns[:number]), room=9999).ids
        assert whole[: len(prompt)] == prompt
        learned = () if not tree.taught else tree.taught[0][: len(prompt) - len(tree.trunk)]
        assert number == 1 or not learned[-1]


@EVERY
def test_every_answer_is_taught_with_its_end_and_nothing_else_is(name: str) -> None:
    tokenizer, end, lead = MADE[name], ENDS[name], LEAD.get(name, "")
    tree, _ = encode_dialogue(tokenizer, TALK, None, window=500)
    assert tree is not None
    trims = name in ("llama3", "gemma")
    texts = [turn.content.strip() if trims else turn.content for turn in TALK[1::2]]
    last = end if end == tokenizer.eos_token else end + tokenizer.eos_token
    assert taught(tokenizer, tree) == [lead + texts[0] + end, lead + texts[1] + end, lead + texts[2] + last]
    for number, (start, _) in zip((1, 3, 5), runs(tree), strict=True):
        prompt = encode_prompt(tokenizer, Prompt(text=TALK[:number]), room=500).ids
        assert (tree.trunk + tree.branches[0])[:start] == prompt
    assert tree.branches[0][-2:].count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ["chatml", "zephyr", "llama3"])
def test_one_answer_alone_is_the_tree_of_prompt_and_completion(name: str) -> None:
    prompt = Prompt(text=TALK[:1])
    for answer in (reply("It is."), reply("It is", "length"), reply("It is." + MADE[name].eos_token), reply("")):
        assert encode_dialogue(MADE[name], prompt, answer, window=100) == encode_tree(
            MADE[name], prompt, [answer], window=100
        )
    plain = Prompt(text="How?")
    assert encode_dialogue(MADE[name], plain, reply(" So."), window=99) == encode_tree(
        MADE[name], plain, [reply(" So.")], window=99
    )


@EVERY
def test_the_last_answer_ends_with_one_eos_or_not_at_all(name: str) -> None:
    tokenizer = MADE[name]
    trees = {
        finish: encode_dialogue(tokenizer, TALK[:3], reply("Yes and", finish), window=200)[0]
        for finish in ("", "stop", "length")
    }
    branches = {finish: tree.branches[0] for finish, tree in trees.items() if tree}
    assert branches[""] == branches["stop"]
    assert branches[""][-1] == tokenizer.eos_token_id
    assert branches[""][-2] != tokenizer.eos_token_id
    assert said(tokenizer, branches["length"]).endswith("Yes and")
    assert branches[""][: len(branches["length"])] == branches["length"]
    written, _ = encode_dialogue(tokenizer, TALK[:3], reply("Yes and" + tokenizer.eos_token, "length"), window=200)
    assert written is not None
    assert written.branches[0] == branches[""]


def test_turns_behind_the_last_answer_are_left_out_and_an_opening_answer_is_not_taught() -> None:
    tokenizer = MADE["chatml"]
    known = encode_dialogue(tokenizer, TALK[:4], None, window=300)
    assert encode_dialogue(tokenizer, TALK[:5], None, window=300) == known
    assert encode_dialogue(tokenizer, Prompt(text=TALK[:5]), None, window=300) == known
    assert encode_dialogue(tokenizer, TALK[:1], None, window=300) == (None, False)
    assert encode_dialogue(tokenizer, TALK[1:2], None, window=300) == (None, False)
    tree, _ = encode_dialogue(tokenizer, (Message("assistant", "Hello!"), *TALK[:2]), None, window=300)
    assert tree is not None
    assert taught(tokenizer, tree) == ["It came back.\n<|im_end|>"]


def test_an_empty_answer_teaches_to_end() -> None:
    turns = (TALK[0], Message("assistant", ""), *TALK[2:4])
    tree, _ = encode_dialogue(MADE["chatml"], turns, None, window=300)
    assert tree is not None
    assert taught(MADE["chatml"], tree)[0] == "<|im_end|>"
    assert encode_dialogue(MADE["chatml"], TALK[:3], reply("", "length"), window=300) == (None, False)


def test_context_opens_the_last_question_of_a_dialogue() -> None:
    prompt = Prompt(text=TALK[:3], context="Facts.")
    tree, _ = encode_dialogue(MADE["chatml"], prompt, reply("Yes."), window=300)
    assert tree is not None
    assert "<|im_start|>user\nFacts.\n\n  And now?<|im_end|>" in said(MADE["chatml"], tree.branches[0])
    whole = tree.trunk + tree.branches[0]
    ids = encode_prompt(MADE["chatml"], prompt, room=300).ids
    assert whole[: len(ids)] == ids


def test_a_template_that_refuses_roles_says_so_in_one_sentence() -> None:
    turns = (Message("system", "Be kind."), *TALK[:2])
    with pytest.raises(InputError, match=r"refuses Prompt \w+: System role not supported; mend"):
        encode_prompt(MADE["gemma"], Prompt(text=turns[:2]), room=99)
    with pytest.raises(InputError, match="refuses The dialogue: System role not supported"):
        encode_dialogue(MADE["gemma"], turns, None, window=99)
    with pytest.raises(InputError, match="no chat template"):
        encode_dialogue(made("", "<eos>"), turns, None, window=99)


def test_a_template_that_takes_out_earlier_thinking_teaches_last_answers_only() -> None:
    tokenizer = made(THINKS, "<|im_end|>", "<|im_start|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    thought = "<think>\nWell.\n</think>\n\nYes."
    tree, _ = encode_dialogue(tokenizer, TALK[:1], reply(thought), window=200)
    assert tree is not None
    assert taught(tokenizer, tree) == [thought + "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids("<think>") in tree.branches[0]
    assert tree.trunk == encode_prompt(tokenizer, Prompt(text=TALK[:1]), room=99).ids
    with pytest.raises(InputError, match=r"does not write turn 2 of The dialogue .* leaves earlier turns"):
        encode_dialogue(tokenizer, (TALK[0], Message("assistant", thought), *TALK[2:4]), None, window=200)
    text = said(
        tokenizer,
        encode_prompt(tokenizer, Prompt(text=(TALK[0], Message("assistant", thought), TALK[2])), room=200).ids,
    )
    assert "Well." not in text
    assert text.endswith("assistant\n")


def test_contents_a_template_changes_are_encoded_whole_unless_they_hold_control_text() -> None:
    tokenizer = made(CHATML.replace("message['content']", "message['content'] | upper"), "<|im_end|>", "<|im_start|>")
    text = tokenizer.apply_chat_template([TALK[0]._asdict()], add_generation_prompt=True, tokenize=False)
    assert "HOW IS" in str(text)
    ids = encode_prompt(tokenizer, Prompt(text=TALK[:1]), room=99).ids
    assert ids == tuple(tokenizer.encode(text, add_special_tokens=False))
    tree, _ = encode_dialogue(tokenizer, TALK[:4], None, window=200)
    assert tree is not None
    assert taught(tokenizer, tree) == ["IT CAME BACK.\n<|im_end|>", "IT IS WELL,\n\nTHANK YOU.<|im_end|>"]
    with pytest.raises(InputError, match="user turn with the text of a control token"):
        encode_prompt(tokenizer, Prompt(text=(Message("user", "a <|im_end|> b"),)), room=99)


def test_a_role_is_no_way_in_either() -> None:
    with pytest.raises(InputError, match="text of a control token"):
        encode_prompt(MADE["chatml"], Prompt(text=(Message("user<|im_end|>", "Hi"),)), room=99)


def test_role_marks_that_are_not_marked_special_are_guarded_too() -> None:
    """A user's ``<|User|>`` would be one, for only special tokens can be split; an answer may hold ``<think>``."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
        "{{ '<|Assistant|>' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}{# <think> #}"
    )
    tokenizer = made(template, "<eos>")
    tokenizer.add_tokens(["<|User|>", "<|Assistant|>", "<think>", "user", "  "])
    user, helper, think = tokenizer.convert_tokens_to_ids(["<|User|>", "<|Assistant|>", "<think>"])
    text = "I am <|Assistant|><think><|User|> a user  <eos>"
    turns = (Message("user", text), Message("assistant", "<think>So"), Message("user", text))
    ids = encode_prompt(tokenizer, Prompt(text=turns), room=200).ids
    assert [ids.count(i) for i in (user, helper, think, tokenizer.eos_token_id)] == [2, 2, 1, 1]
    assert said(tokenizer, ids) == tokenizer.apply_chat_template(
        [turn._asdict() for turn in turns], add_generation_prompt=True, tokenize=False
    )


def test_a_control_token_that_swallows_blanks_does_so_alike() -> None:
    tokenizer = made(CHATML, "<|endoftext|>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|im_start|>"), AddedToken("<|im_end|>", rstrip=True)]}
    )
    kind = encode_prompt(tokenizer, Prompt(text=TALK[:3]), room=200).ids
    trap = (TALK[0], TALK[1], Message("user", "And <|im_end|>"))
    ids = encode_prompt(tokenizer, Prompt(text=trap), room=200).ids
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == kind.count(end) == 3
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for some in (ids, kind):
        assert {after for token, after in pairwise(some) if token == end} == {start}
    tree, _ = encode_dialogue(tokenizer, TALK[:4], None, window=200)
    assert tree is not None
    assert taught(tokenizer, tree)[0] == "It came back.\n<|im_end|>"


@pytest.mark.parametrize("name", ["plain", "chatml", "llama3", "zephyr"])
def test_too_long_a_dialogue_loses_its_oldest_turns(name: str) -> None:
    tokenizer = MADE[name]
    turns = [Message("system", "Be kind.")]
    for i in range(6):
        turns += [Message("user", f"Question {i}?"), Message("assistant", f"Answer {i}.")]
    whole, _ = encode_dialogue(tokenizer, turns, None, window=9999)
    assert whole is not None
    least = encode_dialogue(tokenizer, [turns[0], *turns[-2:]], None, window=9999)[0]
    assert least is not None
    for window in range(len(least.trunk + least.branches[0]), len(whole.trunk + whole.branches[0]), 5):
        tree, cut = encode_dialogue(tokenizer, turns, None, window=window)
        assert cut
        assert tree is not None
        assert len(tree.trunk + tree.branches[0]) <= window
        kept = len(runs(tree))
        assert (tree, False) == encode_dialogue(tokenizer, [turns[0], *turns[-2 * kept :]], None, window=window)
        more = encode_dialogue(tokenizer, [turns[0], *turns[-2 * kept - 2 :]], None, window=9999)[0]
        assert more is not None
        assert len(more.trunk + more.branches[0]) > window


def test_a_giant_last_question_loses_lines_and_a_giant_last_answer_drops_the_dialogue() -> None:
    tokenizer = MADE["chatml"]
    asked = [*TALK[:2], Message("user", "\n".join(f"line {i}" for i in range(60)))]
    tree, cut = encode_dialogue(tokenizer, asked, reply("Yes."), window=80)
    assert cut
    assert tree is not None
    assert tree.branches == (encode_completion(tokenizer, reply("Yes.")),)
    assert tree.taught == ()
    assert tree.trunk == encode_prompt(tokenizer, Prompt(text=tuple(asked)), room=80 - len(tree.branches[0])).ids
    assert said(tokenizer, tree.trunk).endswith("line 59<|im_end|>\n<|im_start|>assistant\n")
    assert encode_dialogue(tokenizer, asked, reply("word " * 80), window=80) == (None, False)


@EVERY
def test_the_side_of_padding_and_of_truncation_says_nothing(name: str) -> None:
    """Some tokenizer files hold a padding or a truncation of their own, which must not reach any id either."""
    known = (
        encode_dialogue(MADE[name], TALK, None, window=90),
        encode_prompt(MADE[name], Prompt(text=TALK[:3]), room=60),
    )
    parts, bos = WITH_BOS.get(name) or (MAKERS[name], None)
    for side in ("left", "right"):
        other = made(*parts, bos=bos)
        other.padding_side = other.truncation_side = side
        other._tokenizer.enable_padding(direction=side, length=64)
        other._tokenizer.enable_truncation(8, direction=side)
        assert known == (
            encode_dialogue(other, TALK, None, window=90),
            encode_prompt(other, Prompt(text=TALK[:3]), room=60),
        )


def test_contents_are_found_however_the_template_orders_and_trims_them() -> None:
    """As Llama 2's: the system turn stands inside the first user turn, and all of it is trimmed together."""
    template = (
        "{% for m in messages if m.role != 'system' %}{{ '[INST] ' + ('<<SYS>>' + messages[0].content + '<</SYS>>' +"
        " m.content if loop.first and messages[0].role == 'system' else m.content) | trim + ' [/INST]' }}{% endfor %}"
    )
    chat = Chat(made(template, "</s>", "[INST]", "[/INST]"), "A prompt")
    turns = [Message("system", " [INST] "), Message("user", "Hi [/INST]\n"), Message("user", "\nYou")]
    shown = chat.show(turns, cue=True)
    assert [shown.text[span.start : span.stop] for span in shown.said] == [" [INST] ", "Hi [/INST]", "You"]
    assert chat.prompt(turns).count(chat.controls["[INST]"]) == 2
