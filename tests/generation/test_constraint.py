"""Stories held to a JSON Schema, a regular expression or a grammar."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from gguf_tokenizers import TOKENIZERS
from json_schemas import random_schema
from tiny import tokenizer_file
from tokenizer_keys import byte_level_keys, chat_model, sentencepiece_keys
from vocabularies import BYTES, SPACE, Layout

from pyllama2c import GrammarError, Llama, Llama2cError, Tokenizer, UnsupportedError
from pyllama2c.generation import constraint
from pyllama2c.generation.constraint import Grammars
from pyllama2c.generation.text import StoryText
from pyllama2c.tokenizers.base import BaseTokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def storyteller() -> Llama:
    return Llama()


# ---- JSON ----


def test_five_hundred_schemas(storyteller: Llama) -> None:
    schemas = [random_schema(seed) for seed in range(500)]
    ends: Counter[str] = Counter()
    for story in storyteller.generate_batch(
        [""] * len(schemas), json_schema=schemas, seed=1, max_tokens=150
    ):
        ends[story.finish_reason] += 1
        if story.finish_reason == "stop":
            jsonschema.validate(json.loads(story.text), schemas[story.prompt_index])
        else:
            assert story.finish_reason == "length" and len(story.tokens) == 150, story.error
    assert sum(ends.values()) == 500 and ends["stop"] >= 375


class Pydantic:
    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return PERSON


@pytest.mark.parametrize("schema", [PERSON, json.dumps(PERSON), Pydantic], ids=type)
def test_ways_to_give_a_schema(storyteller: Llama, schema: Any) -> None:
    story = storyteller.generate("", json_schema=schema, seed=1)
    assert json.loads(story.read()) == json.loads(
        storyteller.generate("", json_schema=PERSON, seed=1).read()
    )
    assert story.finish_reason == "stop"


@pytest.mark.parametrize("schema", [True, {}, "true"], ids=repr)
def test_any_json_is_compact(storyteller: Llama, schema: Any) -> None:
    for story in storyteller.generate_batch(
        ["["], n=20, json_schema=schema, seed=3, max_tokens=40, logit_bias={0: -1.0}
    ):
        if story.finish_reason == "stop":
            value = json.loads(story.text)
            if not re.search(r"\d[.eE]|[eE]\d|\\u", story.text):
                compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
                assert re.sub(r"\\/", "/", story.text) == compact or "-0" in story.text


def test_the_schema_may_ask_for_white_space(storyteller: Llama) -> None:
    schema = {**PERSON, "x-guidance": {"item_separator": ", ", "key_separator": ": "}}
    assert ", " in storyteller.generate("", json_schema=schema, seed=1).read()


@pytest.mark.parametrize("prompt", ["", "Once upon a time", "She said: "])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_alone_and_in_a_batch(storyteller: Llama, prompt: str, temperature: float) -> None:
    held: Any = {"json_schema": PERSON, "temperature": temperature, "max_tokens": 60}
    plain: Any = {"temperature": temperature, "max_tokens": 20}
    others = ["Lily", "The dog"]
    forms = [PERSON, None, None]
    for story in storyteller.generate_batch(
        [prompt, *others], json_schema=forms, temperature=temperature, seed=4, max_tokens=60
    ):
        options = held if story.prompt_index == 0 else {**plain, "max_tokens": 60}
        text = [prompt, *others][story.prompt_index]
        alone = storyteller.generate(text, seed=story.seed, **options)
        assert (alone.read(), alone.tokens) == (story.text, story.tokens)
        assert alone.finish_reason == story.finish_reason
        if story.prompt_index == 0:
            jsonschema.validate(json.loads(story.text), PERSON)


def test_cut_by_max_tokens(storyteller: Llama) -> None:
    whole = storyteller.generate("", json_schema=PERSON, seed=1)
    whole.read()
    n = len(whole.tokens)
    for most, reason in ((1, "length"), (n - 1, "length"), (n, "stop"), (n + 1, "stop")):
        story = storyteller.generate("", json_schema=PERSON, seed=1, max_tokens=most)
        (batched,) = storyteller.generate_batch([""], json_schema=PERSON, seed=1, max_tokens=most)
        story.read()
        assert story.finish_reason == batched.finish_reason == reason
        assert story.tokens == batched.tokens == whole.tokens[:most]


def test_a_complete_story_takes_no_further_sweep(storyteller: Llama) -> None:
    story = storyteller.generate("", regex="ab", seed=1)
    assert story.read() == "ab" and story.finish_reason == "stop"
    assert story._session is None and story.rng_state != 0
    state = story.rng_state
    short = storyteller.generate("", regex="ab", seed=1, max_tokens=len(story.tokens))
    short.read()
    assert short.rng_state == state  # no coin was tossed for an end


# ---- Vocabularies ----


def llama2c_tokenizer(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_file())
    return Tokenizer(path)


def without_spaces(*, add_space: bool) -> BaseTokenizer:
    """Bytes, and a piece that begins with a space; no piece is one."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *BYTES]
    return Layout([*pieces, (SPACE + "a", -1.0, 1), ("a", -2.0, 1)], add_space).through_gguf()


@pytest.fixture(
    params=["tokenizer.bin", "llama", "gpt2", "no space", "no space first", "storyteller"]
)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> BaseTokenizer:
    if request.param == "tokenizer.bin":
        return llama2c_tokenizer(tmp_path)
    if request.param == "storyteller":
        return Llama().tokenizer
    if request.param.startswith("no space"):
        return without_spaces(add_space=request.param == "no space first")
    return TOKENIZERS[request.param]


def wander(
    tokenizer: BaseTokenizer, prompt: list[int], r: random.Random, most: int = 200, **given: Any
) -> tuple[str, bool]:
    """The text of tokens drawn at random from the masks, and whether it is complete."""
    source: Any = SimpleNamespace(tokenizer=tokenizer)
    forms = {"json_schema": None, "regex": None, "grammar": None} | given
    grammar = Grammars(source).compile(prompt, **forms)
    assert grammar is not None
    guide, tokens, complete = grammar.guide(), [], False
    while not complete and len(tokens) < most:
        mask = guide.mask()
        size = tokenizer.vocab_size
        allowed = [t for t in range(size) if mask[t // 32] >> t % 32 & 1]
        token = r.choice(allowed)
        if token in tokenizer.ends:
            complete = True
            break
        assert tokenizer.piece(token) and token not in tokenizer.special_tokens.values()
        tokens.append(token)
        complete = guide.take(token)
    text = StoryText(tokenizer, prompt, [], begins_anew=True)
    return text.feed_all(tokens) + text.rest(), complete


EXPRESSIONS = [
    "abc|xyz",
    " hello",
    "  a{1,5}",
    "(a| b)*c",
    "日本 ?😀+é",
    "[^a]{1,9}",
    r"[\u0000-\u001f]{2}",
    "<s>|</s>|<unk>|<0x41>",
    r"(https?://)?[a-z]+\.(com|org)(/[a-z%]*)*",
    r"\p{L}{1,4}",
    "",
    "a*",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_regex_against_re(tokenizer: BaseTokenizer, expression: str) -> None:
    import unicodedata

    letters = re.fullmatch(r"\\p\{L\}\{1,4\}", expression) is not None
    r = random.Random(1)
    for prompt in ([tokenizer.bos_id], [tokenizer.bos_id, 100], [200]):
        for _ in range(4):
            text, complete = wander(tokenizer, prompt, r, regex=expression)
            if not complete:
                continue
            if letters:
                assert 1 <= len(text) <= 4
                assert all(unicodedata.category(c)[0] == "L" for c in text)
            else:
                assert re.fullmatch(expression, text), text


@pytest.mark.parametrize("seed", range(12))
def test_json_by_any_vocabulary(tokenizer: BaseTokenizer, seed: int) -> None:
    schema, r = random_schema(seed), random.Random(seed)
    for prompt in ([tokenizer.bos_id], [100]):
        text, complete = wander(tokenizer, prompt, r, json_schema=schema)
        if complete:
            jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "text", ["x", " x", "  x", "é", " 日本", "😀", '"\\', "\n a", "hello world"]
)
def test_forced_text_at_the_beginning(tokenizer: BaseTokenizer, text: str) -> None:
    """A schema, an expression and a grammar that allow one text: it is told whole, spaces too."""
    r = random.Random(1)
    quoted = json.dumps(text, ensure_ascii=False)
    for prompt in ([tokenizer.bos_id], [tokenizer.bos_id, 100], [100]):
        assert wander(tokenizer, prompt, r, regex=re.escape(text)) == (text, True)
        assert wander(tokenizer, prompt, r, grammar=f"start: {quoted}") == (text, True)
        value, complete = wander(tokenizer, prompt, r, json_schema={"const": text})
        assert complete and json.loads(value) == text


def test_words_begin_as_the_model_knows_them(storyteller: Llama) -> None:
    """After BOS the first word is the piece with the space that every text begins with."""
    story = storyteller.generate("", regex="Once upon a time", temperature=0.0)
    assert story.read() == "Once upon a time"
    assert story.tokens == storyteller.tokenizer.encode("Once upon a time")


def test_half_a_character_of_the_prompt_is_not_the_storys(storyteller: Llama) -> None:
    for prompt in (b"\xf0\x9f", b"abc\xe6\x97"):
        story = storyteller.generate(prompt, json_schema=PERSON, seed=1)
        (batched,) = storyteller.generate_batch([prompt], json_schema=PERSON, seed=1)
        jsonschema.validate(json.loads(story.read()), PERSON)
        assert json.loads(batched.text) == json.loads(story.read())


@pytest.mark.parametrize("keys", [sentencepiece_keys, byte_level_keys])
def test_gguf_models_and_chat(tmp_path: Path, keys: Any) -> None:
    path = tmp_path / "chat.gguf"
    path.write_bytes(chat_model(keys()).build())
    with Llama(path) as llama:
        schema = {"enum": ["é", "日本 😀", 'x"y', 12, None]}
        seen = set()
        for seed in range(10):
            messages: Any = [{"role": "user", "content": "ab"}]
            story = llama.chat(messages, json_schema=schema, seed=seed, max_tokens=60)
            value = json.loads(story.read())
            jsonschema.validate(value, schema)
            assert story.finish_reason == "stop"
            seen.add(value)
        assert len(seen) > 1


def test_one_grammar_under_two_tokenizers(tmp_path: Path) -> None:
    """What one model compiled is of no use to another."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(chat_model(byte_level_keys()).build())
    with Llama(path) as other, Llama() as storyteller:
        for llama in (storyteller, other, storyteller, other):
            text = llama.generate("ab", regex="hello (world|é)", seed=2).read()
            assert re.fullmatch("hello (world|é)", text)


# ---- What else a story has ----


def test_a_processor_cannot_lift_the_mask(storyteller: Llama) -> None:
    def only_a(tokens: list[int], logits: Any) -> None:
        logits[:] = 0.0
        logits[storyteller.tokenizer.encode("!")] = 1e4

    options: Any = {"regex": "[a-c]{1,3}!?", "logits_processor": only_a, "seed": 1}
    text = storyteller.generate("", **options).read()
    (batched,) = storyteller.generate_batch([""], **options)
    assert re.fullmatch("[a-c]{1,3}!", text) and batched.text == text


def test_logprobs_are_of_the_model_itself(storyteller: Llama) -> None:
    story = storyteller.generate("The", regex="[x-z]{4}", seed=1, logprobs=2)
    story.read()
    (batched,) = storyteller.generate_batch(["The"], regex="[x-z]{4}", seed=1, logprobs=2)
    assert batched.logprobs == tuple(story.logprobs)
    score = storyteller.score([*story.prompt_tokens, *story.tokens])
    assert [t.logprob for t in story.logprobs] == score.logprobs[len(story.prompt_tokens) :]


def test_stops_end_a_story_that_is_not_complete(storyteller: Llama) -> None:
    story = storyteller.generate("", regex="abcdef", stop="cd")
    assert story.read() == "ab" and story.finish_reason == "stop"
    story = storyteller.generate("", regex="a+", stop_tokens=[7], seed=1, max_tokens=100)
    assert set(story.read()) == {"a"}
    assert not set(story.tokens) & storyteller.tokenizer.ends  # they end it all the same


def test_drafts_are_off(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(chat_model(sentencepiece_keys()).build())
    with Llama(path, speculative=True) as llama, Llama(path, speculative=False) as plain:
        story = llama.generate("ab", regex="[a-z ]{30}", seed=3)
        assert story.read() == plain.generate("ab", regex="[a-z ]{30}", seed=3).read()
        assert story.stats.drafted_tokens == 0


def test_threads_share_a_model(storyteller: Llama) -> None:
    expected = {
        seed: storyteller.generate("", json_schema=PERSON, seed=seed).read() for seed in (1, 2, 3)
    }
    told: list[tuple[int, str]] = []

    def tell(seed: int) -> None:
        told.append((seed, storyteller.generate("", json_schema=PERSON, seed=seed).read()))

    threads = [threading.Thread(target=tell, args=(1 + i % 3,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 9 and all(expected[seed] == text for seed, text in told)


def test_cancelled_and_closed(storyteller: Llama) -> None:
    story = storyteller.generate("", regex="a{400}", seed=1)
    next(story)
    story.cancel()
    story.read()
    assert story.finish_reason == "cancelled"
    llama = Llama()
    begun = llama.generate("", json_schema=PERSON, seed=1)
    next(begun)
    llama.close()
    jsonschema.validate(json.loads(begun.read()), PERSON)  # as any story in progress
    with pytest.raises(ValueError, match="closed"):
        llama.generate("", json_schema=PERSON)


# ---- What is refused ----

CHAIN = "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(5000)) + 'a5000: "x"'


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"regex": "(("}, GrammarError, "regex: .*unclosed group"),
        ({"grammar": "nonsense"}, GrammarError, "grammar: .*Expected"),
        ({"grammar": ""}, GrammarError, "grammar: "),
        ({"json_schema": "{"}, GrammarError, "json_schema is not JSON"),
        ({"json_schema": {"type": "foo"}}, GrammarError, "json_schema: Invalid type: foo"),
        ({"json_schema": {"not": {}}}, GrammarError, 'json_schema: Unimplemented keys: ."not"'),
        ({"json_schema": {"a": object()}}, GrammarError, "json_schema is not JSON"),
        ({"json_schema": {"$ref": "http://localhost/x"}}, GrammarError, "json_schema: "),
        ({"json_schema": False}, GrammarError, "json_schema: "),
        ({"json_schema": {"enum": []}}, GrammarError, "json_schema: Unsatisfiable"),
        ({"json_schema": 3}, TypeError, "json_schema is 3; it must be"),
        ({"json_schema": "3"}, TypeError, "json_schema is 3; it must be"),
        ({"regex": 3}, TypeError, "regex is 3; it must be text"),
        ({"grammar": b"x"}, TypeError, "grammar is b'x'; it must be text"),
        ({"regex": "a", "grammar": "b"}, ValueError, "regex and grammar are both given"),
        ({"regex": r"[^\s\S]"}, GrammarError, "regex: no text .* matches it"),
        ({"grammar": "start: start"}, GrammarError, "grammar: no text .* matches it"),
        ({"regex": "x" * 70_000}, GrammarError, "70,000 characters; the limit MAX_TEXT is 65,536"),
        (
            {"json_schema": {"enum": [f"{i:x}" for i in range(20000)]}},
            GrammarError,
            "json_schema has .* the limit MAX_TEXT",
        ),
        (
            {"json_schema": {"allOf": [{"properties": {str(i): {}}} for i in range(900)]}},
            GrammarError,
            "json_schema: .*max_grammar_size is 100,000",
        ),
        (
            {"json_schema": {"items": [{"multipleOf": 0.30011}, {"multipleOf": 30_011_000}]}},
            GrammarError,
            "json_schema: the multipleOf .* MAX_MULTIPLE is 50,000",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_refused_before_the_first_token(
    storyteller: Llama, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        storyteller.generate("", **given)
    with pytest.raises(error, match=says):
        storyteller.generate_batch(["a", "b"], **given)
    lists: Any = {name: [None, value] for name, value in given.items()}
    if len(lists) == 1:
        with pytest.raises(error, match=f"prompt 1: .*{says}"):
            storyteller.generate_batch(["a", "b"], **lists)
    assert issubclass(GrammarError, Llama2cError) and issubclass(GrammarError, ValueError)


def test_gbnf(storyteller: Llama) -> None:
    """llama.cpp's notation."""
    grammar = 'root ::= "<" word ("," word){2} ">" # three\nword ::= "cat" | "d" [aou] "g"'
    for story in storyteller.generate_batch([""] * 8, grammar=grammar, seed=1):
        assert re.fullmatch(r"<(cat|d[aou]g)(,(cat|d[aou]g)){2}>", story.text)
    assert storyteller.generate("", grammar='start: "a ::= b"').read() == "a ::= b"  # Lark
    nested = "(" * 5000 + '"a"' + ")" * 5000
    for wrong in ("root ::= other", 'no ::= "a"', 'root ::= "a', f"root ::= {nested}", "::= x"):
        with pytest.raises(GrammarError, match="grammar: "):
            storyteller.generate("", grammar=wrong)
    with pytest.raises(GrammarError, match="16398 characters of GBNF; the limit is 16384"):
        storyteller.generate("", grammar='root ::= "' + "a" * 16387 + '"')


def test_text_without_end(storyteller: Llama) -> None:
    story = storyteller.generate("", grammar='start: "a" start', max_tokens=9)
    with pytest.raises(GrammarError, match=r"grammar: .*step_max_items is 50,000"):
        story.read()


def test_rules_that_lead_to_rules(storyteller: Llama) -> None:
    """llguidance follows them by recursion: a thread's usual stack is too small."""
    assert storyteller.generate("", grammar=CHAIN).read() == "x"


def test_a_limit_in_the_middle_of_a_story(
    storyteller: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(constraint.LIMITS, "step_max_items", 60)
    grammar = 'start: "a" s\ns: s s | "a" | "ab" | "b"'
    with Llama() as llama:
        story = llama.generate("", grammar=grammar, seed=1, max_tokens=100)
        with pytest.raises(GrammarError, match=r"grammar: .*step_max_items is 60"):
            story.read()
        texts = list(llama.generate_batch([""], n=2, regex="abc", seed=1))
        assert [t.text for t in texts] == ["abc", "abc"]
        (ended,) = llama.generate_batch([""], grammar=grammar, seed=1, max_tokens=100)
        assert ended.finish_reason == "error" and isinstance(ended.error, GrammarError)
        assert ended.tokens == story.tokens


def test_compiled_once(storyteller: Llama) -> None:
    grammars = storyteller._grammars
    storyteller.generate("", regex="q{3}")
    compiled = next(reversed(grammars._compiled.values()))
    storyteller.generate("", regex="q{3}", seed=5)
    assert next(reversed(grammars._compiled.values())) is compiled
    for i in range(100):
        storyteller.generate("", regex=f"q{{{i}}}")
    assert len(grammars._compiled) == constraint._CACHED


def test_what_is_kept_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar that takes long to compile holds up those only that are compiled after it."""
    begun, go_on = threading.Event(), threading.Event()
    compile_slowly = constraint._Vocabulary.compile

    def compile_(self: Any, argument: str, text: str, strips: bool) -> Any:
        if text == "slow":
            begun.set()
            go_on.wait()
        return compile_slowly(self, argument, text, strips)

    with Llama() as llama:
        assert llama.generate("", regex="quick").read() == "quick"
        monkeypatch.setattr(constraint._Vocabulary, "compile", compile_)
        threads = [threading.Thread(target=llama.generate, kwargs={"regex": "slow"})]
        threads[0].start()
        begun.wait()
        kept: list[str] = []
        threads.append(
            threading.Thread(target=lambda: kept.append(llama.generate("", regex="quick").read()))
        )
        threads[1].start()
        threads[1].join(600)
        go_on.set()
        for thread in threads:
            thread.join()
        assert kept == ["quick"] and not threads[1].is_alive()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with Llama() as llama:
        with pytest.raises(UnsupportedError, match=r"pip install 'pyllama2c\[guide\]'"):
            llama.generate("", regex="a")
        assert llama.generate("", seed=1, max_tokens=3).read()


def test_masks_are_of_the_whole_vocabulary() -> None:
    """A vocabulary without any end: what may go on goes on, and no token beyond it is drawn."""
    pieces = [("<unk>", 0.0, 2), *BYTES]
    tokenizer = Layout(pieces, add_space=False).through_gguf()
    assert not {t for t in tokenizer.ends if t >= 0}
    r = random.Random(1)
    assert wander(tokenizer, [70], r, regex="ab") == ("ab", True)
    source: Any = SimpleNamespace(tokenizer=tokenizer)
    grammar = Grammars(source).compile([70], json_schema=None, regex="a", grammar=None)
    assert grammar is not None and grammar.first is None
