/* The engine of a page that is one file: page.js's Engine interface, by the module in a Worker. The file has its parts as
   data: texts, and bytes in base64. Nothing is fetched. */

class WasmEngine {
  #worker;
  #waiting = new Map(); // by number: {resolve, reject, told}
  #asked = 0;
  #open;
  #failure = null; // of the Worker itself, after which it answers nothing

  constructor() {
    this.#open = this.#start();
    this.#open.catch(() => {}); // about() tells
  }

  async #start() {
    const source = WasmEngine.#part("worker");
    this.#worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    this.#worker.onmessage = ({ data }) => this.#hear(data);
    this.#worker.onerror = (event) => this.#fail(new Error(event.message || "The engine's Worker has failed."));
    const [module, model, tokenizer] = ["module", "model-file", "tokenizer-file"].map(WasmEngine.#bytes);
    const facts = JSON.parse(WasmEngine.#part("facts"));
    return this.#ask("open", { module, model, tokenizer, facts }, null, [module.buffer, model.buffer, tokenizer.buffer]);
  }

  #fail(error) {
    this.#failure = error;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  /* A part's text, which the page then no longer holds. */
  static #part(id) {
    const element = document.getElementById(id);
    element.remove();
    return element.textContent;
  }

  static #bytes(id) {
    const text = atob(WasmEngine.#part(id));
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  #ask(ask, given, told = null, transfer = []) {
    return new Promise((resolve, reject) => {
      if (this.#failure) return reject(this.#failure);
      const id = this.#asked++;
      this.#waiting.set(id, { resolve, reject, told });
      this.#worker.postMessage({ id, ask, given }, transfer);
    });
  }

  #hear({ id, answer, error, told }) {
    const { resolve, reject, told: tell } = this.#waiting.get(id);
    if (told) return told.forEach(([index, token]) => tell(index, [token]));
    this.#waiting.delete(id);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  }

  async about() {
    await this.#open;
    return this.#ask("about");
  }

  async begin(from) {
    const tokens = await this.#ask("begin", { from });
    return { story: { ids: tokens.map((token) => token.id) }, tokens };
  }

  async next(story, how) {
    const answer = await this.#ask("next", { ids: story.ids, how });
    return { ...answer, story: { ids: [...story.ids, answer.token] } };
  }

  attention(story, position) {
    return this.#ask("attention", { ids: story.ids, position });
  }

  crowd(story, how, size, place, told) {
    return this.#ask("crowd", { ids: story.ids, how, size, place }, told);
  }

  async excerpts() {
    return JSON.parse(document.getElementById("excerpts").textContent);
  }
}

globalThis.storyEngine = new WasmEngine();
