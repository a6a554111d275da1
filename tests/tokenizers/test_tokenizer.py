"""tokenizer.bin: hostile files, text that round-trips, time that grows with the text."""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BYTE_PIECES, SPECIAL_PIECES, TEXT_PIECES, tokenizer_file

from pyllama2c import ClosedError, Tokenizer, TokenizerError


def load(tmp_path: Path, data: bytes, vocab_size: int | None = None) -> Tokenizer:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data)
    return Tokenizer(path, vocab_size)


def with_pieces(*more: bytes, text: list[bytes] = TEXT_PIECES) -> bytes:
    return tokenizer_file(pieces=[*SPECIAL_PIECES, *BYTE_PIECES, *text, *more])


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path)


def record(data: bytes, piece: int) -> int:
    """Where the record (score, length, bytes) of a piece begins."""
    offset = 4
    for _ in range(piece):
        offset += 8 + struct.unpack_from("<i", data, offset + 4)[0]
    return offset


@pytest.mark.parametrize(
    ("piece", "field", "value", "message"),
    [
        (260, 4, struct.pack("<i", -1), "piece 260: length is -1; it must be 1 to"),
        (260, 4, struct.pack("<i", 2**31 - 1), "piece 260: length is 2147483647"),
        (260, 4, struct.pack("<i", -(2**31)), "piece 260: length is -2147483648"),
        (260, 4, struct.pack("<i", 0), "piece 260: length is 0"),
        (265, 0, struct.pack("<f", math.nan), "piece 265: score is NaN"),
        (7, 8, b"<0x-1>", "piece 7 must be the byte piece <0x04>"),
        (7, 8, b"<0x4 >", "piece 7 must be the byte piece <0x04>"),
        (7, 8, b"<0x05>", "piece 7 must be the byte piece <0x04>"),
    ],
)
def test_damaged_pieces(tmp_path: Path, piece: int, field: int, value: bytes, message: str) -> None:
    data = bytearray(tokenizer_file())
    offset = record(bytes(data), piece) + field
    data[offset : offset + len(value)] = value
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, bytes(data))


@pytest.mark.parametrize("longest", [0, -1, 2**31 - 1, -(2**31), 3])
def test_declared_longest_piece(tmp_path: Path, longest: int) -> None:
    data = struct.pack("<i", longest) + tokenizer_file()[4:]
    with pytest.raises(TokenizerError, match="longest"):
        load(tmp_path, data)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="holds 300 pieces, but the model's vocab_size is 512"):
        load(tmp_path, tokenizer_file(), 512)
    with pytest.raises(TokenizerError, match="holds 300 pieces, but the model's vocab_size is 299"):
        load(tmp_path, tokenizer_file(), 299)
    with pytest.raises(TokenizerError, match="at least 259"):
        load(tmp_path, tokenizer_file(pieces=[*SPECIAL_PIECES, *BYTE_PIECES[:-1]]))
    with pytest.raises(ValueError, match="vocab_size is -5"):
        load(tmp_path, tokenizer_file(), -5)


def test_every_truncation(tmp_path: Path) -> None:
    data = tokenizer_file()
    for size in [*range(0, 60), *range(60, len(data), 37), len(data) - 1]:
        with pytest.raises(TokenizerError):
            load(tmp_path, data[:size], 300)


def fnv(data: bytes, h: int = 2166136261) -> int:
    for byte in data:
        h = (h ^ byte) * 16777619 & 0xFFFFFFFF
    return h


def test_pieces_that_collide_take_no_longer(tmp_path: Path) -> None:
    """2^15 pieces with one FNV-1a hash, which the engine's tables used."""
    pieces, state, rng = [b""], fnv(b""), random.Random(0)
    for _ in range(15):
        seen: dict[int, bytes] = {}
        other = block = b""
        while other == block:
            block = rng.randbytes(6)
            other = seen.setdefault(fnv(block, state), block)
        pieces = [piece + each for piece in pieces for each in (other, block)]
        state = fnv(block, state)
    assert {fnv(piece) for piece in pieces} == {state} and len(set(pieces)) == 1 << 15

    def seconds(more: list[bytes]) -> float:
        data = with_pieces(*more)
        started = time.process_time()
        load(tmp_path, data).close()
        return time.process_time() - started

    plain = seconds([piece[::-1] for piece in pieces])
    assert seconds(pieces) < 20 * plain + 0.1


def test_a_file_that_is_cut_while_open(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(with_pieces(*(b"piece %d" % i for i in range(5000))))
    code = (
        "import os, sys, pyllama2c\n"
        "with pyllama2c.Tokenizer(sys.argv[1]) as tokenizer:\n"
        "    os.truncate(sys.argv[1], 0)\n"
        "    assert tokenizer.decode(tokenizer.encode('piece 4999')) == 'piece 4999'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_duplicate_pieces(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="pieces 260 and 281 are the same"):
        load(tmp_path, with_pieces(b"a"))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Tokenizer(tmp_path / "none.bin")
    assert isinstance(caught.value, TokenizerError)
    with pytest.raises(TokenizerError, match="is a directory"):
        Tokenizer(tmp_path)


def test_pieces_that_only_look_like_bytes_are_text(tmp_path: Path) -> None:
    pretenders = [b"<0x-1>", b"<0x4", b"<0xZZ>", b"<0x041>"]
    with load(tmp_path, with_pieces(*pretenders)) as tokenizer:
        first = tokenizer.vocab_size - len(pretenders)
        assert [tokenizer.piece(first + i) for i in range(4)] == pretenders
        assert tokenizer.piece(3 + 0x41) == b"A"


def test_no_space_piece(tmp_path: Path) -> None:
    """The space before a text then is a byte token, as in SentencePiece."""
    text = [piece for piece in TEXT_PIECES if b" " not in piece]
    with load(tmp_path, with_pieces(text=text)) as tokenizer:
        assert tokenizer.encode("a")[0] == 3 + 0x20
        assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_merges_by_score_then_from_the_left(tokenizer: Tokenizer) -> None:
    def pieces(text: str) -> list[bytes]:
        return [tokenizer.piece(t) for t in tokenizer.encode(text)]

    assert pieces("a") == [b" a"]
    assert pieces("aaaa") == [b" a", b"aa", b"a"]  # " a" has the better score, then the left "aa"
    assert pieces("cde") == [b" ", b"cd", b"e"]
    assert tokenizer.encode("") == []
    assert tokenizer.encode("", bos=True, eos=True) == [1, 2]
    assert tokenizer.encode("a", bos=True, eos=True) == [1, *tokenizer.encode("a"), 2]


@pytest.mark.parametrize("text", ["<s>", "</s>", "<0x41>", "\n<s>\n", "<unk>", "[INST]"])
def test_markup_is_just_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == text


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


@settings(max_examples=400, deadline=None)
@given(st.binary())
def test_bytes_round_trip(tokenizer: Tokenizer, data: bytes) -> None:
    """NULs, stray continuation bytes, cut characters: each invalid byte is a byte token."""
    meta = "\u2581".encode()
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data.replace(meta, b" ")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, 299)))
def test_ids_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    joined = b"".join(tokenizer.piece(i) for i in ids)
    assert joined.removeprefix(b" ") == tokenizer.decode_bytes(ids)


def test_the_leading_space_goes_only_at_the_start(tokenizer: Tokenizer) -> None:
    a = tokenizer.encode("a")
    assert tokenizer.decode([*a, *a]) == "a a"
    assert tokenizer.decode([1, *a, 2, 1, *a]) == "aa"


def test_wrong_arguments(tokenizer: Tokenizer) -> None:
    for token in (-1, 300, 2**31, -(2**40)):
        with pytest.raises(TokenizerError, match="outside the vocabulary of 300"):
            tokenizer.decode([token])
        with pytest.raises(TokenizerError, match="outside the vocabulary of 300"):
            tokenizer.special_text(token)
    with pytest.raises(TypeError, match="an integer: a token id"):
        tokenizer.special_text(None)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="UTF-8"):
        tokenizer.encode("lone \ud800 surrogate")


def test_use_after_close(tokenizer_path: Path) -> None:
    with Tokenizer(tokenizer_path) as closing:
        pass
    closing.close()
    with pytest.raises(ClosedError):
        closing.encode("a")


@pytest.mark.parametrize("text", ["a" * 1_000_000, "ab" * 500_000, "é" * 500_000, "\0" * 300_000])
def test_long_monotonous_text(tokenizer: Tokenizer, text: str) -> None:
    """Quadratic merging would take hours; the bound is only there to notice that."""
    started = time.process_time()
    ids = tokenizer.encode(text)
    assert time.process_time() - started < 60
    assert tokenizer.decode(ids) == text
