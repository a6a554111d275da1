// Tells a story with the WebAssembly engine for wasm.py: a JSON request on each line of standard input, an answer on
// each of standard output.
//   {module, model, ids, seed, tokens, temperature, top_p} -> {seconds, ids: of the story}
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

async function open(request) {
  const { instance } = await WebAssembly.instantiate(readFileSync(request.module), {});
  const c = instance.exports;
  c._initialize();
  const [out, error] = [c.malloc(16), c.malloc(512)];
  const made = (call) => {
    if (call(out) !== 0) throw new Error("the engine refuses the model");
    return new DataView(c.memory.buffer).getUint32(out, true);
  };
  const file = readFileSync(request.model);
  const data = c.malloc(file.length);
  new Uint8Array(c.memory.buffer, data, file.length).set(file);
  const pool = made((at) => c.l2c_pool_create(1, at, error));
  const model = made((at) => c.l2c_model_open_memory(data, file.length, 0, pool, at, error));
  const session = made((at) => c.l2c_session_create(model, pool, 1, 0, 0, 0, at, error));
  return { c, session, row: c.malloc(16), sampler: c.malloc(64), token: c.malloc(4), error };
}

/* Ends neither with the story nor with anything else: every run is as long. */
function tell({ c, session, row, sampler, token, error }, { seed, tokens, temperature, top_p }) {
  c.l2c_sampler_init(sampler, BigInt(seed));
  const put = () => new DataView(c.memory.buffer);
  put().setFloat32(sampler, temperature, true);
  put().setFloat32(sampler + 4, top_p, true);
  const ids = [];
  let started = 0;
  for (let position = 0, id = 1; position < tokens; position++) {
    if (position === 1) started = performance.now();
    [0, position, id, 1].forEach((field, i) => put().setInt32(row + 4 * i, field, true));
    if (c.l2c_session_forward(session, row, 1, error) !== 0) throw new Error("forward");
    if (c.l2c_session_sample(session, 0, sampler, 0, 0, token, error) !== 0) throw new Error("sample");
    ids.push((id = put().getInt32(token, true)));
  }
  return { seconds: (performance.now() - started) / 1000, ids };
}

const opened = new Map();
for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  if (!opened.has(request.model)) opened.set(request.model, await open(request));
  process.stdout.write(`${JSON.stringify(tell(opened.get(request.model), request))}\n`);
}
