// What the npm package `openai` is told by the server at argv[2], as JSON.
const { OpenAI } = require("openai");

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model: "any", seed: 7, max_tokens: 20 };
const chat = { ...asked, messages: [{ role: "user", content: "A cat" }] };
const schema = { enum: ["yes", "no"] };

async function main() {
  const out = { models: [] };
  for await (const model of client.models.list()) out.models.push(model.id);
  out.completion = await client.completions.create({ ...asked, prompt: "Once", logprobs: 2 });
  out.pieces = [];
  for await (const chunk of await client.completions.create({ ...asked, prompt: "Once", stream: true }))
    out.pieces.push(chunk.choices[0].text);
  out.chat = await client.chat.completions.create({ ...chat, n: 2 });
  const stream = client.chat.completions.stream({ ...chat, stream_options: { include_usage: true } });
  out.streamed = await stream.finalChatCompletion(); // which checks every event
  const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  out.parsed = await client.chat.completions.parse({ ...chat, response_format: format });
  try {
    await client.chat.completions.create({ ...chat, top_p: 2 });
  } catch (error) {
    const { status, param, code, type } = error;
    out.error = { kind: error.constructor.name, status, param, code, type };
  }
  const left = await client.chat.completions.create({ ...chat, max_tokens: 400, stream: true });
  for await (const _ of left) break; // aborts the request
  console.log(JSON.stringify(out));
}

main();
