"""Several sweeps a call on a card, without the host in between: the tokens are those of one sweep
at a time, and how many sweeps a call makes follows from what the last one took."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import fake_cuda
import pytest
from fake_driver import Fake
from tiny import Shape, TinyLlama

from pyllama2c import Llama
from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.generation.sampling import new_sampler

pytestmark = [
    pytest.mark.skipif(not fake_cuda.possible(), reason=fake_cuda.NEEDS),
    pytest.mark.usefixtures("fake"),
]

VOCAB = 100
CONTEXT = 80
SHAPE = Shape(
    dim=16, hidden_dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=VOCAB, seq_len=CONTEXT
)
GREEDY = {"temperature": 0.0}


@pytest.fixture
def llamas(fake: Fake) -> Iterator[tuple[Llama, Llama]]:
    """The same model on the processor and on a card."""
    image = TinyLlama.random(SHAPE).v0()
    with Llama.from_buffer(image) as cpu, Llama.from_buffer(image, device="cuda") as card:
        yield cpu, card


def sampler(**settings: Any) -> Any:
    defaults = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "seed": 1}
    return new_sampler(**{"repetition_penalty": 1.0} | defaults | settings)


class Ask(NamedTuple):
    prompt: list[int]
    max_tokens: int
    ends: list[int]
    settings: dict[str, Any]
    tell: int = 0


class Told(NamedTuple):
    tokens: list[int]
    reason: int
    seen: list[int]
    """tokens that were told one by one"""


class Batch:
    """An l2c_batch without the Python around it."""

    def __init__(self, llama: Llama, n: int) -> None:
        engine, self.error = llama._engine, new_error()
        out = ffi.new("l2c_batch **")
        status = lib.l2c_batch_create(
            engine.model, engine.pool, n, CONTEXT, lib.L2C_KV_FLOAT32, lib.L2C_ISA_AUTO, out,
            self.error,
        )  # fmt: skip
        check(status, self.error)
        self.handle = ffi.gc(out[0], lib.l2c_batch_free)
        self.tokens: dict[int, list[int]] = {}

    def add(self, ask: Ask) -> int:
        prompt, ends = ffi.new("int32_t[]", ask.prompt), ffi.new("int32_t[]", ask.ends)
        request = {
            "prompt": prompt, "n_prompt": len(prompt), "ends": ends, "n_ends": len(ends),
            "sampler": sampler(**ask.settings), "max_tokens": ask.max_tokens, "tell": ask.tell,
        }  # fmt: skip
        story = ffi.new("int64_t *")
        given = ffi.new("l2c_request *", request)
        check(lib.l2c_batch_add(self.handle, given, story, self.error), self.error)
        self.tokens[story[0]] = []
        return int(story[0])

    def step(self) -> dict[int, Told]:
        """What ended."""
        events, n, ended = ffi.new("l2c_event **"), ffi.new("size_t *"), {}
        check(lib.l2c_batch_step(self.handle, events, n, self.error), self.error)
        for event in (events[0][i] for i in range(n[0])):
            if event.kind == lib.L2C_EVENT_TOKEN:
                self.tokens[event.story].append(event.chosen.token)
                assert event.tokens[event.n_tokens - 1] == event.chosen.token
            elif event.kind == lib.L2C_EVENT_END:
                tokens = ffi.unpack(event.tokens, event.n_tokens) if event.tokens else []
                ended[event.story] = Told(tokens, event.reason, self.tokens.pop(event.story))
        return ended

    def sweeps(self) -> int:
        return int(lib.l2c_batch_count(self.handle).sweeps)

    def counts(self) -> dict[str, int]:
        counts = lib.l2c_batch_count(self.handle)
        return {name: getattr(counts, name) for name in ("rows", "tokens", "prompt_tokens")}

    def tell(self, asks: list[Ask]) -> list[Told]:
        ids, told = [self.add(ask) for ask in asks], {}
        while lib.l2c_batch_stories(self.handle) > 0:
            told |= self.step()
        return [told[story] for story in ids]


def random_asks(rng: random.Random, n: int) -> list[Ask]:
    def ask() -> Ask:
        prompt = [1, *(rng.randrange(3, VOCAB) for _ in range(rng.randrange(4)))]
        most = rng.choice([1, 3, 9, 20])
        ends = [rng.randrange(VOCAB) for _ in range(rng.choice([0, 2, 30]))]
        temperature = rng.choice([0.0, 1.0, 1.0])
        settings = {"temperature": temperature, "seed": rng.randrange(1, 1000)}
        settings |= {"top_p": rng.choice([0.9, 1.0]), "top_k": rng.choice([0, 0, 7])}
        return Ask(prompt, most, ends, settings, rng.choice([0, lib.L2C_TELL_TOKENS]))

    return [ask() for _ in range(n)]


@pytest.mark.parametrize("n", [1, 8, 20])
def test_stories_of_all_lengths_and_ends(llamas: tuple[Llama, Llama], n: int) -> None:
    asks = random_asks(random.Random(n), n)
    cpu, card = (Batch(llama, n) for llama in llamas)
    expected = cpu.tell(asks)
    assert card.tell(asks) == expected
    assert {told.reason for told in expected} == {lib.L2C_END_STOP, lib.L2C_END_LENGTH} or n < 20
    assert card.counts() == cpu.counts()
    # and what they left in the caches is what they would have read
    again = [ask._replace(prompt=[*ask.prompt, *told.tokens][:40], max_tokens=9)
             for ask, told in zip(asks, expected, strict=True)]  # fmt: skip
    assert card.tell(again) == cpu.tell(again)


def test_stories_that_come_later(llamas: tuple[Llama, Llama]) -> None:
    """Each time one ends, the next takes its sequence, whose cache is still there."""
    asks = random_asks(random.Random(5), 18)
    told = []
    for llama in llamas:
        batch, waiting, numbers = Batch(llama, 10), list(enumerate(asks)), {}
        done: dict[int, Told] = {}
        while len(done) < len(asks):
            while waiting and len(numbers) - len(done) < 10:
                number, ask = waiting.pop(0)
                numbers[batch.add(ask)] = number
            done |= {numbers[story]: one for story, one in batch.step().items()}
        told.append(done)
    assert told[0] == told[1]


@pytest.mark.parametrize(("n", "sweeps"), [(3, 32), (9, 8)])
def test_a_step_makes_several_sweeps(
    fake: Fake, llamas: tuple[Llama, Llama], n: int, sweeps: int
) -> None:
    batch = Batch(llamas[1], n)
    for i in range(n):
        batch.add(Ask([5 + i], 70 if n < 9 else 24, [], GREEDY))
    made = []
    while lib.l2c_batch_stories(batch.handle) > 0:
        before = batch.sweeps()
        waits = fake.count("waits")
        batch.step()
        made.append(batch.sweeps() - before)
        # for the end of all, and of all sweeps but two
        assert fake.count("waits") - waits <= 2 + (max(made[-1] - 2, 0) if n > 8 else 0)
    # the prompts, one more to see what it takes, and so on
    assert made[:5] == [1, 1, 2, 4, 8] and max(made) == sweeps


def test_a_step_in_which_prompts_are_read_makes_one_sweep(llamas: tuple[Llama, Llama]) -> None:
    batch = Batch(llamas[1], 4)
    batch.add(Ask([1, 5], 40, [], GREEDY))
    for _ in range(3):
        batch.step()
    before = batch.sweeps()
    batch.add(Ask([1, 7], 40, [], GREEDY))
    batch.step()
    assert batch.sweeps() == before + 1
    batch.step()
    assert batch.sweeps() > before + 2


@pytest.mark.parametrize("n", [2, 9])
def test_who_drops_or_cancels_waits_for_a_sweep_alone(llamas: tuple[Llama, Llama], n: int) -> None:
    batch = Batch(llamas[1], n)
    ids = [batch.add(Ask([1, 5 + i], 20, [], GREEDY)) for i in range(n)]
    for _ in range(4):
        batch.step()
    before = batch.sweeps()
    lib.l2c_batch_drop(batch.handle, ids[0])  # as if after the step had looked for dropped stories
    assert batch.step()[ids[0]].reason == lib.L2C_END_DROPPED
    assert batch.sweeps() == before + 1
    batch.step()
    assert batch.sweeps() > before + 2
    lib.l2c_batch_cancel(batch.handle)
    status = lib.l2c_batch_step(
        batch.handle, ffi.new("l2c_event **"), ffi.new("size_t *"), batch.error
    )
    assert status == lib.L2C_CANCELLED
    told = {}
    while lib.l2c_batch_stories(batch.handle) > 0:
        told |= batch.step()
    expected = Batch(llamas[0], n).tell([Ask([1, 5 + i], 20, [], GREEDY) for i in range(n)])
    assert [told[story] for story in ids[1:]] == expected[1:]


@pytest.mark.parametrize("n", [2, 9])
def test_choices_that_the_card_leaves_to_the_host(fake: Fake, n: int) -> None:
    """More candidates than it sorts: such a story waits, and the others go on."""
    image = TinyLlama.random(
        Shape(dim=16, hidden_dim=16, n_layers=1, n_heads=2, vocab_size=1100)
    ).v0()
    asks = [
        Ask([1, 5 + i], 5, [], {"top_p": 0.999 if i % 2 else 0.5, "seed": 3 + i, "top_k": i % 3})
        for i in range(n)
    ]
    with Llama.from_buffer(image) as cpu, Llama.from_buffer(image, device="cuda") as card:
        assert Batch(card, n).tell(asks) == Batch(cpu, n).tell(asks)


def test_a_story_whose_logits_are_no_numbers_ends_alone(fake: Fake) -> None:
    model = TinyLlama.random(replace(SHAPE, tied=False))
    model.weights["embedding"][50:58] = float("nan")  # of whoever reads such a token
    image = model.v0()
    asks = [Ask([5 + i], 12, [], {"seed": i + 1, "top_p": 1.0}) for i in range(10)]
    with Llama.from_buffer(image) as cpu, Llama.from_buffer(image, device="cuda") as card:
        expected = Batch(cpu, 10).tell(asks)
        assert {told.reason for told in expected} == {lib.L2C_END_NONFINITE, lib.L2C_END_LENGTH}
        assert Batch(card, 10).tell(asks) == expected
        assert Batch(card, 3).tell(asks[:3]) == expected[:3]


@pytest.mark.parametrize("n", [2, 10])
def test_masks_and_penalties_are_the_cards(fake: Fake, llamas: tuple[Llama, Llama], n: int) -> None:
    rng, words = random.Random(n), (VOCAB + 31) // 32
    masks = [[rng.getrandbits(32) for _ in range(words)] for _ in range(6)]
    told = []
    for llama in llamas:
        batch = Batch(llama, n)
        ids = [
            batch.add(Ask([5 + i], 6, [], {"seed": i + 1, "repetition_penalty": 1 + i % 2}))
            for i in range(n)
        ]
        done: dict[int, Told] = {}
        for mask in masks:
            for story in ids[::2]:
                bits = ffi.new("uint32_t[]", mask)
                check(lib.l2c_batch_mask(batch.handle, story, bits, batch.error), batch.error)
            before = fake.count("copies")
            done |= batch.step()
            # rows, draws and bits to the card, and tokens back; perhaps RoPE's angles: no logits
            assert llama is llamas[0] or fake.count("copies") - before <= 6
        told.append([done[story] for story in ids])
    assert told[0] == told[1]
    for one in told[0][::2]:
        assert all(m[t // 32] >> t % 32 & 1 for t, m in zip(one.tokens, masks, strict=True))


def launched(llama: Llama, fake: Fake, microseconds: list[int]) -> list[int]:
    """Sweeps of launches that take so long, of one story."""
    history = ffi.new("int32_t[]", [1, 5, *[0] * CONTEXT])
    with llama._engine.sessions.lent() as session:
        session.feed([1], 0, want_logits=0)
        made: list[int] = []
        for launch_us in microseconds:
            fake.configure(f"launch_us={launch_us}")
            most = min(lib.L2C_MAX_STEPS, CONTEXT - 1 - sum(made))
            ends = ffi.new("int32_t[]", 0)
            made.append(len(session.decode(sampler(), history, 2 + sum(made), most, ends)))
    return made


@pytest.mark.parametrize(
    ("microseconds", "sweeps"),
    [
        ([10] * 5, [1, 2, 4, 8, 16]),
        ([19_000] * 5, [1, 2, 4, 8, 16]),  # 20 ms are no reason to make more
        ([21_000] * 3, [1, 1, 1]),
        ([60_000] * 3, [1, 1, 1]),  # nor can there be less
        ([10, 10, 10, 60_000, 37_000, 10, 10], [1, 2, 4, 8, 5, 5, 10]),
        ([10, 10, 30_000, 30_000, 1_000, 100], [1, 2, 4, 4, 4, 8]),
    ],
)
def test_a_launch_takes_a_moment(
    fake: Fake, llamas: tuple[Llama, Llama], microseconds: list[int], sweeps: list[int]
) -> None:
    assert launched(llamas[1], fake, microseconds) == sweeps


def test_sweeps_of_more_rows_are_expected_to_take_longer(
    fake: Fake, llamas: tuple[Llama, Llama]
) -> None:
    """Nine stories' sweeps take 4 ms; eighteen's might take 8, of which five are enough."""
    batch = Batch(llamas[1], 18)
    for i in range(9):
        batch.add(Ask([5 + i], 29, [], GREEDY))
    batch.step()
    launches = fake.count("launches")
    batch.step()
    fake.configure(f"launch_us={4000 // (fake.count('launches') - launches)}")
    for _ in range(4):
        before = batch.sweeps()
        batch.step()
    assert batch.sweeps() - before == 8
    for i in range(9):
        batch.add(Ask([50 + i], 9, [], GREEDY))
    batch.step()
    before = batch.sweeps()
    batch.step()
    assert batch.sweeps() - before == 5
