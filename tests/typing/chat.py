"""Conversations."""

from typing_extensions import assert_type

from pyllama2c import Generation, Llama, Message

llama = Llama("chat.gguf")
plain = [{"role": "user", "content": "Hello"}]
assert_type(llama.chat(plain, max_tokens=100, temperature=0), Generation)
llama.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])

messages: list[Message] = [{"role": "user", "content": "Hello"}]
answer = llama.chat(messages, stop=["\n"])
messages.append({"role": "assistant", "content": answer.read()})
llama.chat(messages, temprature=1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
wrong: Message = {"role": "me", "content": ""}  # type: ignore[typeddict-item] # pyright: ignore[reportAssignmentType]
