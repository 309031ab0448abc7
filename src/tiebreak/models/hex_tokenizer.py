"""Tokenizer files that spell every token in hex: byte-level BPE on whole texts, as some from-scratch GPTs keep it.

``{"vocab": {"<id>": "<hex of its bytes>"}, "merges": {"<left id>,<right id>": <id>}}``; ids 0 to 255 are the bytes. A
text becomes its UTF-8 bytes, and the neighbours whose merge has the lowest id join, until none can. There is no end of
text and no padding in such a file, so both are added here behind the last id.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tiebreak.models.encode import PLAIN_CHAT
from tiebreak.models.load import EOS, PAD
from tiebreak.records import InputError

Merges = Mapping[tuple[int, int], int]

SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
HIDDEN = [byte for byte in range(256) if byte not in SHOWN]
LETTERS = {byte: chr(byte) for byte in SHOWN} | {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
"""How the tokenizers library writes each byte: printable ones as themselves, the others from U+0100 on."""
BYTES = {letter: byte for byte, letter in LETTERS.items()}
TWIN = "\ue000"
"""Tells tokens with equal bytes apart in the tokenizers library, which knows tokens by their text; never decoded."""


class Read(NamedTuple):
    """A tokenizer, and how many ids its file has: end of text and padding stand behind them where it had none."""

    tokenizer: PreTrainedTokenizerFast
    ids: int


def read_hex(path: Path) -> Read:
    """Return the tokenizer of a file, with the same ids for every text.

    An id that spells out EOS or PAD is that control token: what is written never becomes it, whatever the file merges.

    Raises:
        InputError: the file is missing or is not of this kind, or names bytes, ids or merges that do not add up.
    """
    whole = _opened(path)
    tokens = _tokens(whole["vocab"], path)
    merges = _merges(whole["merges"], tokens, path)
    return Read(make(tokens, merges), len(tokens))


def write_hex(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write ``tokenizer`` to ``path`` in one move: all of it or nothing.

    EOS and PAD are written as tokens that spell them out and that no merge makes.

    Raises:
        InputError: the tokenizer does more than merge bytes, or its ids are not in the order of its merges.
    """
    tokens, merges = spelled(tokenizer)
    whole = {
        "vocab": {str(number): token.hex() for number, token in enumerate(tokens)},
        "merges": {f"{left},{right}": made for (left, right), made in merges.items()},
    }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def make(tokens: Sequence[bytes], merges: Merges) -> PreTrainedTokenizerFast:
    """Return a tokenizer of ``tokens``, by id, which joins as ``merges`` say; EOS and PAD are added where missing.

    Two tokens may have the same bytes. No text has both: the bytes of a token that a text has merge to that token on
    their own too, for all merges that made it lie within it. So at most one of them is ever made, the merges of the
    others can go, and it takes the plain name.
    """
    controls = [name.encode() for name in (EOS, PAD)]
    special = {tokens.index(control) for control in controls if control in tokens}
    alive = {pair: made for pair, made in merges.items() if tokens[made] not in controls}
    rank = {made: pair for pair, made in alive.items() if merged(tokens[made], alive) == [made]}
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for number in sorted(range(len(tokens)), key=lambda n: (n not in special, n > 255 and n not in rank, n)):
        name = "".join(LETTERS[byte] for byte in tokens[number])
        names[number] = name + TWIN * taken.get(name, 0)
        taken[name] = taken.get(name, 0) + 1
    vocabulary = {names[number]: number for number in range(len(tokens))}
    for name in (EOS, PAD):
        vocabulary.setdefault(name, len(vocabulary))
    joins = [(names[left], names[right]) for left, right in (rank[made] for made in sorted(rank))]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=joins))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    twins = [decoders.Replace(TWIN, "")] if max(taken.values()) > 1 else []
    backend.decoder = decoders.Sequence([*twins, decoders.ByteLevel()]) if twins else decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=PLAIN_CHAT,
        clean_up_tokenization_spaces=False,
    )


def merged(text: bytes, merges: Merges) -> list[int]:
    """Return the ids of ``text`` as such a file means them: the lowest merge first, all its places from the left."""
    ids = list(text)
    while True:
        pairs = [pair for pair in pairwise(ids) if pair in merges]
        if not pairs:
            return ids
        pair = min(pairs, key=merges.__getitem__)
        joined, place = [], 0
        while place < len(ids):
            fits = tuple(ids[place : place + 2]) == pair
            joined.append(merges[pair] if fits else ids[place])
            place += 2 if fits else 1
        ids = joined


def train_hex(texts: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of this kind: the 256 bytes, then ``vocabulary`` - 256 merges, EOS and PAD.

    Merges are learned within words, or a phrase that comes again and again would be one token; what they make of a text
    needs no words split off. Fewer are learned where no pair comes twice. Equal texts give equal tokenizers.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokens = [bytes([byte]) for byte in range(256)]
    ids = {token: number for number, token in enumerate(tokens)}
    merges = {}
    for pair in json.loads(learner.to_str())["model"]["merges"]:
        left, right = (bytes(BYTES[letter] for letter in part) for part in pair)
        if left + right not in ids:
            ids[left + right] = len(tokens)
            merges[ids[left], ids[right]] = len(tokens)
            tokens.append(left + right)
    return make(tokens, merges)


def spelled(tokenizer: PreTrainedTokenizerBase) -> tuple[list[bytes], dict[tuple[int, int], int]]:
    """Return the bytes of every id of ``tokenizer`` and its merges.

    Raises:
        InputError: as for :func:`write_hex`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(backend.to_str()) if backend is not None else {}
    model, split = whole.get("model", {}), whole.get("pre_tokenizer") or {}
    whole_texts = (
        split.get("type") == "ByteLevel" and not split.get("use_regex", True) and not split["add_prefix_space"]
    )
    if model.get("type") != "BPE" or not whole_texts or whole.get("normalizer") is not None:
        raise _no_hex("does more than merge the bytes of a whole text")
    special = {added["content"]: added["id"] for added in whole["added_tokens"]}
    if set(special) != {EOS, PAD} or (tokenizer.eos_token, tokenizer.pad_token) != (EOS, PAD):
        raise _no_hex(f"has other control tokens than {EOS} and {PAD}")
    ids = {**model["vocab"], **special}
    known = [set(name) <= {*BYTES, TWIN} for name in ids]
    if sorted(ids.values()) != list(range(len(ids))) or not all(known):
        raise _no_hex("has ids that are left out or stand for no bytes")
    tokens = [b""] * len(ids)
    for name, number in ids.items():
        tokens[number] = bytes(BYTES[letter] for letter in name.replace(TWIN, ""))
    merges = {(ids[left], ids[right]): ids[left + right] for left, right in model["merges"]}
    made = list(merges.values())
    rising = made == sorted(set(made)) and all(number > max(pair) for pair, number in merges.items())
    if tokens[:256] != [bytes([byte]) for byte in range(256)] or not rising:
        raise _no_hex("does not have the 256 bytes first and then its merges in their order")
    return tokens, merges


def _no_hex(why: str) -> InputError:
    return InputError(
        f"The tokenizer cannot be written beside a .pth checkpoint, for it {why}; save the model as a folder instead."
    )


def _opened(path: Path) -> dict[str, Any]:
    """Return the file's two tables, whatever else it holds."""
    kind = '{"vocab": {"0": "00", ...}, "merges": {"116,104": 256, ...}}'
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no tokenizer {path}; put the one the model was trained with there.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The tokenizer {path} cannot be read ({type(error).__name__}); expected {kind}.") from error
    if isinstance(whole, dict) and isinstance(whole.get("model"), dict):
        raise InputError(
            f"{path} is a Hugging Face tokenizer, which goes with a model folder; a .pth checkpoint needs the file it "
            f"was trained with: {kind}."
        )
    if not isinstance(whole, dict) or not all(isinstance(whole.get(name), dict) for name in ("vocab", "merges")):
        raise InputError(f"{path} is not a tokenizer of the kind {kind}.")
    return whole


def _tokens(vocabulary: Mapping[str, Any], path: Path) -> list[bytes]:
    tokens: dict[int, bytes] = {}
    for key, spelling in vocabulary.items():
        if not re.fullmatch("0|[1-9][0-9]{0,8}", key):
            raise InputError(f"{path}: vocab has the id {key!r}; expected a whole number such as 256.")
        if not isinstance(spelling, str) or not re.fullmatch("([0-9a-fA-F]{2})+", spelling):
            raise InputError(f"{path}: id {key} of vocab is {spelling!r}; expected bytes in hex such as '7468'.")
        tokens[int(key)] = bytes.fromhex(spelling)
    gap = next((number for number in range(max(256, len(tokens))) if number not in tokens), None)
    if gap is not None:
        raise InputError(f"{path}: vocab has {len(tokens):,} ids and not {gap}; expected all from 0 on, bytes first.")
    wrong = next((byte for byte in range(256) if tokens[byte] != bytes([byte])), None)
    if wrong is not None:
        raise InputError(
            f"{path}: id {wrong} of vocab is {tokens[wrong].hex()}; expected {wrong:02x}, for the first 256 ids are "
            "the bytes."
        )
    return [tokens[number] for number in range(len(tokens))]


def _merges(table: Mapping[str, Any], tokens: Sequence[bytes], path: Path) -> dict[tuple[int, int], int]:
    merges: dict[tuple[int, int], int] = {}
    for key, made in table.items():
        if not re.fullmatch("[0-9]{1,9},[0-9]{1,9}", key) or type(made) is not int:
            raise InputError(f"{path}: merges has {key!r}: {made!r}; expected two ids and one, such as '116,104': 256.")
        left, right = (int(part) for part in key.split(","))
        unknown = next((number for number in (left, right, made) if not 0 <= number < len(tokens)), None)
        if unknown is not None:
            raise InputError(f"{path}: merge {key!r}: {made} names id {unknown}, which vocab does not have.")
        if tokens[left] + tokens[right] != tokens[made]:
            raise InputError(
                f"{path}: merge {key!r}: {made} joins {tokens[left].hex()} and {tokens[right].hex()}, but id {made} is "
                f"{tokens[made].hex()}."
            )
        if made <= max(left, right):
            raise InputError(f"{path}: merge {key!r}: {made} makes an id that is not above its parts.")
        merges[left, right] = made
    made_by: dict[int, tuple[int, int]] = {}
    for pair, made in merges.items():
        if made in made_by:
            raise InputError(f"{path}: two merges make id {made}, so which comes first is not known; expected one.")
        made_by[made] = pair
    return merges
