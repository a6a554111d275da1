// Runs the WebAssembly engine for test_wasm.py: a JSON request on standard input, its answer on standard output.
//   {module, model, dtype, kv, tokens}   -> {hash: SHA-256 of the logits after each token}
//   {module, model, dtype, kv, cases: [{prompt, steps, temperature, top_p, seed}]} -> {stories: [[ids after the prompt]]}
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const request = JSON.parse(readFileSync(0, "utf-8"));
const { instance } = await WebAssembly.instantiate(readFileSync(request.module), {});
const c = instance.exports;
c._initialize();
const memory = () => new DataView(c.memory.buffer);
const room = c.malloc(1024); // for structs and pointers that calls fill in
const [out, error, row, sampler, token] = [room, room + 16, room + 512, room + 640, room + 768];

function check(status, what) {
  if (status === 0) return;
  const words = new Uint8Array(c.memory.buffer, error + 8, 256);
  throw new Error(`${what}: ${status}: ${new TextDecoder().decode(words.slice(0, words.indexOf(0)))}`);
}

function made(what, call) {
  check(call(out), what);
  return memory().getUint32(out, true);
}

const file = readFileSync(request.model);
const data = c.malloc(file.length);
new Uint8Array(c.memory.buffer, data, file.length).set(file);
const pool = made("pool", (p) => c.l2c_pool_create(1, p, error));
const model = made("model", (p) => c.l2c_model_open_memory(data, file.length, request.dtype, pool, p, error));
const session = made("session", (p) => c.l2c_session_create(model, pool, 1, 0, request.kv, 0, p, error));
const vocabSize = memory().getInt32(c.l2c_model_config(model) + 24, true);

function feed(position, id) {
  [0, position, id, 1].forEach((field, i) => memory().setInt32(row + 4 * i, field, true));
  check(c.l2c_session_forward(session, row, 1, error), "forward");
}

const answer = {};
if (request.tokens) {
  const hash = createHash("sha256");
  request.tokens.forEach((id, position) => {
    feed(position, id);
    hash.update(new Uint8Array(c.memory.buffer, c.l2c_session_logits(session, 0), 4 * vocabSize));
  });
  answer.hash = hash.digest("hex");
}
answer.stories = (request.cases ?? []).map(({ prompt, steps, temperature, top_p, seed, ends }) => {
  c.l2c_sampler_init(sampler, BigInt(seed));
  memory().setFloat32(sampler, temperature, true);
  memory().setFloat32(sampler + 4, top_p, true);
  const told = [];
  for (let position = 0, id = prompt[0]; position < steps; position++) {
    feed(position, id);
    id = prompt[position + 1];
    if (id === undefined) {
      check(c.l2c_session_sample(session, 0, sampler, 0, 0, token, error), "sample");
      id = memory().getInt32(token, true);
      if (ends.includes(id)) break;
      told.push(id);
    }
  }
  return told;
});
process.stdout.write(JSON.stringify(answer));
