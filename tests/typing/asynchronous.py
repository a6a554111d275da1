"""Stories in an event loop."""

import asyncio
from contextlib import aclosing

from typing_extensions import assert_type

from pyllama2c import Completion, Llama

llama = Llama()


async def tell(prompt: str) -> str:
    story = llama.generate(prompt)
    async with aclosing(story):
        async for piece in story:
            assert_type(piece, str)
            if "." in piece:
                break
    return story.text


async def main() -> list[str]:
    assert_type(await llama.generate("Once").aread(), str)
    async for story in llama.generate_batch(["a", "b"]):
        assert_type(story, Completion)
    return await asyncio.gather(*(tell(prompt) for prompt in ("a", "b")))


asyncio.run(main())
