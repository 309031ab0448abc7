"""A tokenizer spelled in hex gives the ids that a slow, plain reading of its file gives, and any text comes back."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.models.tiny import TEXTS, tokenizer
from tiebreak.models.chat import plain
from tiebreak.models.hex_tokenizer import LETTERS, make, read_hex, train_hex, write_hex
from tiebreak.models.load import EOS, PAD
from tiebreak.records import InputError

SENTENCE = "the cat came back home again and said nothing to me"
ODD = [
    "",
    " ",
    "\t\ttabs\n\n",
    "naïve café",
    "日本語のテキスト",
    "🙂👩‍👩‍👧‍👦🇩🇪",
    "\x00\x7f\u2028",
    "ﷺ",
    "a" * 50,
    "\ue000",
    EOS + PAD,
]
LETTER = st.sampled_from("abcd")


def saved(folder: Path, tokens: list[bytes], merges: dict[tuple[int, int], int], **more: Any) -> Path:
    path = folder / "tokenizer.json"
    vocab = {str(number): token.hex() for number, token in enumerate(tokens)}
    table = {f"{left},{right}": made for (left, right), made in merges.items()}
    path.write_text(json.dumps({"vocab": vocab, "merges": table, **more}))
    return path


def learned(text: str, count: int) -> tuple[list[bytes], dict[tuple[int, int], int]]:
    """Merge the commonest neighbours of ``text``, ``count`` times, each time to an id of its own."""
    tokens, merges, ids = [bytes([b]) for b in range(256)], {}, list(text.encode())
    for _ in range(count):
        pairs = list(pairwise(ids))
        if not pairs:
            break
        pair = max(pairs, key=lambda p: (pairs.count(p), p))
        merges[pair] = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        ids = joined(ids, pair, merges[pair])
    return tokens, merges


def joined(ids: list[int], pair: tuple[int, int], made: int) -> list[int]:
    out: list[int] = []
    while ids:
        fits = len(ids) > 1 and (ids[0], ids[1]) == pair
        out.append(made if fits else ids[0])
        ids = ids[2:] if fits else ids[1:]
    return out


def slowly(text: str, merges: dict[tuple[int, int], int]) -> list[int]:
    """What the file means: again and again the neighbours with the lowest merge, everywhere from the left."""
    ids = list(text.encode())
    while fits := [pair for pair in pairwise(ids) if pair in merges]:
        pair = min(fits, key=lambda pair: merges[pair])
        ids = joined(ids, pair, merges[pair])
    return ids


def encoded(made: PreTrainedTokenizerBase, text: str) -> list[int]:
    return plain(made, text)


def decoded(made: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text: str = made.decode(ids, clean_up_tokenization_spaces=False)
    return text


@pytest.fixture(scope="module")
def table() -> tuple[list[bytes], dict[tuple[int, int], int]]:
    return learned("\n".join([*TEXTS, SENTENCE, *ODD]), 150)


def test_eleven_words_are_not_eleven_times_one_id(tmp_path: Path, table: Any) -> None:
    """B3: looked up as whole words in a table of bytes, every word would be id 0."""
    made = read_hex(saved(tmp_path, *table)).tokenizer
    ids = encoded(made, SENTENCE)
    assert len(SENTENCE.split()) == 11
    assert len(set(ids)) > 8
    assert ids == slowly(SENTENCE, table[1])
    assert decoded(made, ids) == SENTENCE


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.text(st.sampled_from("the cat\n")), st.sampled_from(ODD)))
def test_ids_are_those_of_the_file_and_any_text_comes_back(text: str, table: Any) -> None:
    made = made_of(table)
    ids = encoded(made, text)
    assert ids == slowly(text, table[1])
    assert decoded(made, ids) == text


_made: list[PreTrainedTokenizerBase] = []


def made_of(table: Any) -> PreTrainedTokenizerBase:
    if not _made:
        _made.append(make(*table))
    return _made[0]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=25), st.lists(st.text(LETTER), max_size=8))
def test_ids_with_equal_bytes_are_told_apart(picks: list[tuple[int, int]], texts: list[str]) -> None:
    """Random merges, of which many give bytes that another has given, as learning on whole texts does."""
    tokens, merges, pool = [bytes([b]) for b in range(256)], {}, list(b"abcd")
    for first, second in picks:
        pair = pool[first % len(pool)], pool[second % len(pool)]
        if pair not in merges:
            merges[pair] = len(tokens)
            pool.append(len(tokens))
            tokens.append(tokens[pair[0]] + tokens[pair[1]])
    made = make(tokens, merges)
    assert len(made) == len(tokens) + 2
    for text in texts:
        assert encoded(made, text) == slowly(text, merges)
    for number, token in enumerate(tokens):
        assert decoded(made, [97, number, 98]) == (b"a" + token + b"b").decode(errors="replace")


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 400), max_size=12))
def test_any_ids_decode_to_their_bytes(ids: list[int], table: Any) -> None:
    tokens = table[0]
    some = [number % len(tokens) for number in ids]
    expected = b"".join(tokens[number] for number in some).decode(errors="replace")
    assert decoded(made_of(table), some) == expected


def test_half_a_surrogate_pair_is_no_text() -> None:
    """As with every tokenizer: what cannot be written in a file cannot be encoded, and nothing takes its place."""
    for made in (tokenizer(), train_hex(TEXTS, vocabulary=300)):
        with pytest.raises((UnicodeEncodeError, TypeError)):
            encoded(made, "half \ud83d")


def test_end_and_padding_are_ids_behind_the_last_and_no_text_becomes_them(tmp_path: Path, table: Any) -> None:
    """B9: padding is not the byte 0, and EOS exists."""
    made, ids = read_hex(saved(tmp_path, *table, anything="else"))
    assert ids == len(table[0])
    assert (made.eos_token_id, made.pad_token_id, len(made)) == (ids, ids + 1, ids + 2)
    assert {ids, ids + 1}.isdisjoint(encoded(made, f"{EOS} and {PAD}"))
    assert decoded(made, encoded(made, f"{EOS} and {PAD}")) == f"{EOS} and {PAD}"
    assert made.decode([104, 105, ids], skip_special_tokens=True) == "hi"
    said = made.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False)
    assert said == "user: hi\n\nassistant:"


def test_a_file_that_merges_up_to_the_end_of_text_has_that_id_as_its_end(tmp_path: Path) -> None:
    tokens, merges = learned(EOS * 3, 12)
    assert EOS.encode() in tokens
    made, ids = read_hex(saved(tmp_path, tokens, merges))
    assert made.eos_token_id == tokens.index(EOS.encode())
    assert made.pad_token_id == ids == len(tokens)
    assert made.eos_token_id not in encoded(made, EOS * 2)
    assert decoded(made, encoded(made, EOS * 2)) == EOS * 2


def test_what_is_written_is_read_back_to_the_same_ids(tmp_path: Path, table: Any) -> None:
    first = read_hex(saved(tmp_path, *table)).tokenizer
    write_hex(first, tmp_path / "again.json")
    again, ids = read_hex(tmp_path / "again.json")
    assert ids == len(first) == len(again)
    assert again.get_vocab() == first.get_vocab()
    assert (again.eos_token_id, again.pad_token_id) == (first.eos_token_id, first.pad_token_id)
    assert all(encoded(again, text) == encoded(first, text) == slowly(text, table[1]) for text in [*TEXTS, *ODD[:-1]])
    whole = json.loads((tmp_path / "again.json").read_text())
    assert whole["vocab"][str(first.eos_token_id)] == EOS.encode().hex()
    assert first.eos_token_id not in whole["merges"].values()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "tokenizer.json"]


def test_twins_are_written_and_read_back(tmp_path: Path) -> None:
    """abc is made of ab and c; the id of a and bc has the same bytes, and no text has it."""
    tokens = [*(bytes([b]) for b in range(256)), b"ab", b"bc", b"abc", b"abc", b"abcd"]
    merges = {(97, 98): 256, (98, 99): 257, (256, 99): 258, (97, 257): 259, (259, 100): 260}
    first = read_hex(saved(tmp_path, tokens, merges)).tokenizer
    assert encoded(first, "abcd") == [258, 100] == slowly("abcd", merges)
    assert decoded(first, [259]) == decoded(first, [258]) == "abc"
    write_hex(first, tmp_path / "again.json")
    again = read_hex(tmp_path / "again.json").tokenizer
    assert again.get_vocab() == first.get_vocab()
    assert encoded(again, "abcdbc") == encoded(first, "abcdbc")


def test_it_survives_a_model_folder(tmp_path: Path, table: Any) -> None:
    made = make(*table)
    made.save_pretrained(tmp_path / "folder")
    again = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert all(encoded(again, text) == encoded(made, text) for text in [*TEXTS, *ODD])
    assert all(decoded(again, encoded(again, text)) == text for text in ODD)
    write_hex(again, tmp_path / "hex.json")
    assert read_hex(tmp_path / "hex.json").tokenizer.get_vocab() == made.get_vocab()


def test_one_trained_here_is_of_the_same_kind_every_time(tmp_path: Path) -> None:
    first, again = (train_hex(TEXTS * 2, vocabulary=330) for _ in range(2))
    assert first.get_vocab() == again.get_vocab()
    assert len(first) == 332
    assert first.convert_tokens_to_ids([LETTERS[b] for b in range(256)]) == list(range(256))
    assert all(" " not in decoded(first, [number]).strip() for number in range(330))
    assert len(encoded(first, TEXTS[0])) < len(TEXTS[0].encode()) / 2
    write_hex(first, tmp_path / "tokenizer.json")
    assert read_hex(tmp_path / "tokenizer.json").tokenizer.get_vocab() == first.get_vocab()


def changed(**more: Any) -> dict[str, Any]:
    vocab = {str(b): f"{b:02x}" for b in range(256)} | {"256": "6162", "257": "616263"}
    return {"vocab": vocab | more.pop("vocab", {}), "merges": {"97,98": 256, "256,99": 257}, **more}


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (None, "There is no tokenizer .*put the one the model was trained with there"),
        ("{", r"cannot be read \(JSONDecodeError\)"),
        ("[1]", "is not a tokenizer of the kind"),
        ({"vocab": {}}, "is not a tokenizer of the kind"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "is a Hugging Face tokenizer"),
        (changed(vocab={"256": "6g"}), "id 256 of vocab is '6g'; expected bytes in hex"),
        (changed(vocab={"256": 7}), "id 256 of vocab is 7; expected bytes in hex"),
        (changed(vocab={"x": "00"}), "vocab has the id 'x'"),
        (changed(vocab={"300": "00"}), "and not 258; expected all from 0 on"),
        ({"vocab": {"0": "00"}, "merges": {}}, "vocab has 1 ids and not 1; expected all from 0 on, bytes first"),
        (changed(vocab={"65": "42"}), "id 65 of vocab is 42; expected 41"),
        (changed(merges={"97,98": 300}), "names id 300, which vocab does not have"),
        (changed(merges={"97,400": 256}), "names id 400"),
        (changed(merges={"97,99": 256}), "joins 61 and 63, but id 256 is 6162"),
        (changed(merges={"97;98": 256}), "merges has '97;98': 256; expected two ids and one"),
        (changed(merges={"97,98": "256"}), "merges has '97,98': '256'"),
        (changed(vocab={"258": "6263"}, merges={"98,99": 258, "97,258": 257}), "makes an id that is not above"),
        (
            changed(vocab={"257": "6263", "258": "616263"}, merges={"97,98": 256, "97,257": 258, "256,99": 258}),
            "two merges make id 258",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(whole: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if whole is not None:
        path.write_text(whole if isinstance(whole, str) else json.dumps(whole))
    with pytest.raises(InputError, match=said) as caught:
        read_hex(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_kind_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does more than merge the bytes of a whole text; save the model as a folder"):
        write_hex(tokenizer(), tmp_path / "tokenizer.json")
    more = train_hex(TEXTS, vocabulary=300)
    more.add_tokens(["never-seen"])
    with pytest.raises(InputError, match="other control tokens"):
        write_hex(more, tmp_path / "tokenizer.json")
    assert list(tmp_path.iterdir()) == []
