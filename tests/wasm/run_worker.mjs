// Runs a page's worker for test_page_file.py, as a browser would: a JSON request on standard input, its answers on
// standard output.
//   {worker: its script, html: a page file that has its parts, questions: [[name, given]]} -> [answer or {error}]
// Float32Arrays are base64; what a question tells on its way is in `told`.
import { readFileSync } from "node:fs";

const { html, questions } = JSON.parse(readFileSync(0, "utf-8"));
const file = readFileSync(html, "utf-8");
const part = (id) => file.match(new RegExp(`<script type="[^"]*" id="${id}">([^]*?)</script>`))[1];
const bytes = (id) => new Uint8Array(Buffer.from(part(id), "base64"));

let heard = null;
globalThis.self = { postMessage: (message) => heard(message) };
(0, eval)(part("worker"));

function ask(name, given) {
  const told = [];
  return new Promise((resolve) => {
    heard = (message) => {
      if (message.told) told.push(...message.told);
      else resolve(told.length > 0 ? { told } : "error" in message ? { error: message.error } : (message.answer ?? null));
    };
    self.onmessage({ data: { id: 0, ask: name, given } });
  });
}

const inBase64 = (key, value) => (value instanceof Float32Array ? Buffer.from(value.buffer, 0, value.byteLength).toString("base64") : value);
const parts = { module: bytes("module"), model: bytes("model-file"), tokenizer: bytes("tokenizer-file"), facts: JSON.parse(part("facts")) };
const answers = [await ask("open", parts)];
for (const [name, given] of questions) answers.push(await ask(name, given));
process.stdout.write(JSON.stringify(answers, inBase64));
