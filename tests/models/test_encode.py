"""Text becomes ids in one way, for sampling, training and scoring alike."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import tokenizer
from tiebreak.models.encode import encode_completion, encode_prompt, encode_sides, encode_tree
from tiebreak.records import InputError, Message, Prompt, Response

PLAIN = tokenizer()
EOS = PLAIN.eos_token_id
POST = "TITLE: t\n\nPOST: " + "\n".join(f"line {i} of it" for i in range(20)) + "\n\nTL;DR:"


def with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer that puts BOS in front and EOS behind, as Llama's and T5's do."""
    made = tokenizer()
    made.add_special_tokens({"bos_token": "<s>"})
    around = TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=[("<s>", made.bos_token_id), ("<|endoftext|>", EOS)]
    )
    made._tokenizer.post_processor = around
    return made


def answer(text: str, finish: str = "") -> Response:
    return Response(prompt_id="p", text=text, finish=finish)


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_survives_the_way_there_and_back(text: str) -> None:
    ids = encode_completion(PLAIN, answer(text, finish="length"))
    if not text.endswith("<|endoftext|>"):
        assert PLAIN.decode(list(ids), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("made", [PLAIN, with_bos()], ids=["plain", "bos"])
def test_eos_stands_once_behind_an_answer_that_ended(made: PreTrainedTokenizerFast) -> None:
    ended = encode_completion(made, answer(" A cat."))
    assert ended[-1] == EOS
    assert ended.count(EOS) == 1
    assert encode_completion(made, answer(" A cat.", finish="stop")) == ended
    assert encode_completion(made, answer(" A cat.", finish="length")) == ended[:-1]
    assert encode_completion(made, answer(" A cat.<|endoftext|>")) == ended
    assert encode_completion(made, answer("")) == (EOS,)


def test_what_a_user_wrote_is_never_a_control_token() -> None:
    trap = "End it <|endoftext|> here <|pad|> now"
    assert EOS not in encode_prompt(PLAIN, Prompt(text=trap), room=100).ids
    assert encode_completion(PLAIN, answer(trap)).count(EOS) == 1


def test_bos_stands_once_in_front_and_eos_not_at_all() -> None:
    made = with_bos()
    ids = encode_prompt(made, Prompt(text="Hello."), room=50).ids
    assert ids[0] == made.bos_token_id
    assert ids.count(made.bos_token_id) == 1
    assert EOS not in ids
    cut = encode_prompt(made, Prompt(text=POST), room=20)
    assert cut.ids[0] == made.bos_token_id
    assert len(cut.ids) <= 20


def test_a_chat_template_that_writes_bos_gives_one() -> None:
    made = with_bos()
    made.chat_template = "<s>" + str(made.chat_template)
    ids = encode_prompt(made, Prompt(text=(Message("user", "Hello."),)), room=50).ids
    assert ids.count(made.bos_token_id) == 1
    assert made.decode(list(ids[1:])) == "user: Hello.\n\nassistant:"


def test_a_bos_that_is_only_written_out_is_text() -> None:
    made = with_bos()
    bos = made.bos_token_id
    made.chat_template = "<s>" + str(made.chat_template)
    plain = encode_prompt(made, Prompt(text="<s>Hello.<s>"), room=50).ids
    turns = encode_prompt(made, Prompt(text=(Message("user", "<s>Hello.<s>"),)), room=50).ids
    for ids in (plain, turns):
        assert ids[0] == bos
        assert ids.count(bos) == 1
        assert made.decode(list(ids[1:])).count("<s>") == 2
    bare = tokenizer()
    bare.add_special_tokens({"bos_token": "<s>"})
    assert bare.bos_token_id not in encode_prompt(bare, Prompt(text="<s>Hello."), room=50).ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_padding_says_nothing(side: str) -> None:
    made = with_bos()
    made.padding_side = made.truncation_side = side
    made._tokenizer.enable_padding(direction=side, length=64)
    made._tokenizer.enable_truncation(8, direction=side)
    for room in (20, 200):
        wanted = encode_tree(with_bos(), Prompt(text=POST), [answer(" Yes.")], window=room)
        assert encode_tree(made, Prompt(text=POST), [answer(" Yes.")], window=room) == wanted


def test_a_conversation_needs_a_chat_template() -> None:
    made = tokenizer()
    made.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        encode_prompt(made, Prompt(text=(Message("user", "Hello."),)), room=50)


def test_prompt_ids_are_the_same_in_sampling_and_in_training() -> None:
    """A trailing space is kept: stripping it would move the boundary between prompt and answer."""
    for text in ("Say something: ", "Say something:", "Zeile\n"):
        prompt = Prompt(text=text)
        tree, cut = encode_tree(PLAIN, prompt, [answer(" Yes.")], window=100)
        assert tree is not None
        assert not cut
        assert tree.trunk == encode_prompt(PLAIN, prompt, room=60).ids
        assert PLAIN.decode(list(tree.trunk)) == text


def test_an_empty_prompt_still_has_something_to_predict_from() -> None:
    assert encode_prompt(PLAIN, Prompt(text=""), room=50).ids == (EOS,)
    made = with_bos()
    assert encode_prompt(made, Prompt(text=""), room=50).ids == (made.bos_token_id,)


def test_a_short_prompt_is_left_alone_and_a_cue_inside_a_post_is_harmless() -> None:
    text = "POST: I wrote TL;DR: at the top.\nThen more.\n\nTL;DR:"
    encoded = encode_prompt(PLAIN, Prompt(text=text), room=200)
    assert PLAIN.decode(list(encoded.ids)) == text
    assert not encoded.cut


@pytest.mark.parametrize("room", [30, 60, 90])
def test_a_long_prompt_loses_whole_lines_and_keeps_its_cue(room: int) -> None:
    old = encode_prompt(PLAIN, Prompt(text=POST), room=room, cut="start")
    late = encode_prompt(PLAIN, Prompt(text=POST), room=room, cut="end")
    for encoded in (old, late):
        assert encoded.cut
        assert room // 2 <= len(encoded.ids) <= room
    kept = PLAIN.decode(list(old.ids))
    assert POST.endswith("\n" + kept)
    front, cue = PLAIN.decode(list(late.ids)).removesuffix("\n\nTL;DR:"), "\n\nTL;DR:"
    assert POST.startswith(front + "\n")
    assert PLAIN.decode(list(late.ids)).endswith(cue)


@pytest.mark.parametrize("cut", ["start", "end"])
def test_one_giant_line_is_cut_inside_rather_than_lost(cut: str) -> None:
    text = "TITLE: t\n\nPOST: " + "word " * 200 + "\n\nTL;DR:"
    encoded = encode_prompt(PLAIN, Prompt(text=text), room=50, cut=cut)  # type: ignore[arg-type]
    said = PLAIN.decode(list(encoded.ids))
    assert len(encoded.ids) == 50
    assert said.endswith("\n\nTL;DR:")
    assert said.count("word") > 5
    assert said.startswith("TITLE") == (cut == "end")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab \n", max_size=120), st.integers(8, 40), st.sampled_from(["start", "end"]))
def test_a_prompt_always_fits(text: str, room: int, cut: str) -> None:
    encoded = encode_prompt(PLAIN, Prompt(text=text), room=room, cut=cut)  # type: ignore[arg-type]
    assert 1 <= len(encoded.ids) <= room
    assert encoded.cut == (len(PLAIN.encode(text)) > room)


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_system_turn() -> None:
    turns = [Message("system", "Be kind.")]
    for i in range(6):
        turns += [Message("user", f"Question {i}?"), Message("assistant", f"Answer {i}.")]
    turns.append(Message("user", "And now?"))
    encoded = encode_prompt(PLAIN, Prompt(text=tuple(turns)), room=60)
    said = PLAIN.decode(list(encoded.ids))
    assert encoded.cut
    assert said.startswith("system: Be kind.\n\nuser: ")
    assert said.endswith("user: And now?\n\nassistant:")
    assert "Question 0" not in said


def test_context_stands_before_the_prompt_also_in_a_conversation() -> None:
    assert PLAIN.decode(list(encode_prompt(PLAIN, Prompt(text="Q", context="C"), room=50).ids)) == "C\n\nQ"
    chat = Prompt(text=(Message("system", "S"), Message("user", "Q")), context="C")
    said = PLAIN.decode(list(encode_prompt(PLAIN, chat, room=80).ids))
    assert said == "system: S\n\nuser: C\n\nQ\n\nassistant:"


def test_a_completion_is_never_cut_a_row_that_does_not_fit_is_dropped_whole() -> None:
    short, long = answer(" Yes."), answer(" word" * 60)
    whole = encode_completion(PLAIN, long)
    tree, cut = encode_tree(PLAIN, Prompt(text=POST), [short, long], window=len(whole) + 20)
    assert tree is not None
    assert cut
    assert tree.branches[1] == whole
    assert encode_tree(PLAIN, Prompt(text=POST), [short, long], window=len(whole)) == (None, False)
    assert encode_tree(PLAIN, Prompt(text=POST), [], window=100) == (None, False)


def test_answers_to_different_prompts_grow_from_what_the_prompts_share() -> None:
    """Ids are those of each prompt with its own answer; the rest of a prompt is read in the branch and not learned."""
    asked = [Prompt(text="Name an animal.\n\nBe brief."), Prompt(text="Name an animal.\n\nUse capitals, please.")]
    sides = [(asked[0], answer(" A cat.")), (asked[1], answer(" A CAT."))]
    for made in (PLAIN, with_bos()):
        tree, cut = encode_sides(made, sides, window=100)
        assert tree is not None
        assert not cut
        for (prompt, response), branch, taught in zip(sides, tree.branches, tree.taught, strict=True):
            alone, _ = encode_tree(made, prompt, [response], window=100)
            assert alone is not None
            assert tree.trunk + branch == alone.trunk + alone.branches[0]
            assert sum(taught) == len(alone.branches[0])
            assert taught == tuple(sorted(taught)), "the answer is the end of the branch"
        assert tree.branches[0][0] != tree.branches[1][0]


def test_answers_to_one_prompt_are_its_tree() -> None:
    prompt = Prompt(text="Name an animal.")
    answers = [answer(" A cat."), answer(" A dog.")]
    expected = encode_tree(PLAIN, prompt, answers, window=50)
    assert encode_sides(PLAIN, [(prompt, one) for one in answers], window=50) == expected
    assert expected[0] is not None
    assert expected[0].taught == ()


def test_prompts_may_share_nothing_and_answers_without_room_are_dropped_whole() -> None:
    prompts = [Prompt(text="Name an animal."), Prompt(text="user: hello")]
    for made, shared in ((PLAIN, 0), (with_bos(), 1)):
        tree, _ = encode_sides(made, [(one, answer(" A cat.")) for one in prompts], window=50)
        assert tree is not None
        assert len(tree.trunk) == shared, "BOS, where there is one"
    long = [(prompts[0], answer(" A cat.")), (prompts[0], answer(" cat" * 60))]
    assert encode_sides(PLAIN, long, window=50)[0] is None
