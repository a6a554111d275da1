/* What computes, in a Worker: the page's questions (page.js says what they are), answered by the module as
   pyllama2c/serve/explain.py answers them. `facts` has {name, dtype, kv_dtype, context, tokenizer}; ids are lists. */

const DTYPES = ["auto", "float32", "int8", "int4", "mixed"]; // l2c_dtype
const ISA_AUTO = 0;
const [TELL_TOKENS, EVENT_TOKEN] = [1, 0];

class Engine {
  #library;
  #tokenizer;
  #facts;
  #pool;
  #model;
  #session;
  #sampler;
  #config;
  #fed = []; // ids that the session holds

  constructor(library, { model, tokenizer, facts }) {
    const { c } = library;
    this.#library = library;
    this.#facts = facts;
    const data = library.copy(model); // the model's, as long as it is open
    this.#pool = library.made((out, error) => c.l2c_pool_create(1, out, error));
    this.#model = library.made((out, error) => c.l2c_model_open_memory(data, model.length, facts.dtype, this.#pool, out, error));
    const config = c.l2c_model_config(this.#model) >>> 0;
    const names = Object.keys(LAYOUT.l2c_config).filter((name) => name !== "size");
    this.#config = { ...Object.fromEntries(names.map((name) => [name, library.get("l2c_config", config, name)])), seq_len: facts.context };
    this.#session = library.made((out, error) =>
      c.l2c_session_create(this.#model, this.#pool, 1, facts.context, facts.kv_dtype, ISA_AUTO, out, error));
    this.#tokenizer = new Tokenizer(library, tokenizer, facts.tokenizer, this.#config.vocab_size);
    this.#sampler = library.room(LAYOUT.l2c_sampler.size);
  }

  about() {
    const { c } = this.#library;
    const config = this.#config;
    return {
      name: this.#facts.name,
      fingerprint: String(UINT64(c.l2c_model_fingerprint(this.#model))),
      device: "this computer, in WebAssembly",
      n_parameters: Number(c.l2c_model_parameters(this.#model)),
      attention: true,
      bos: this.#tokenizer.bos,
      ends: this.#tokenizer.ends,
      ...config,
      dtype: DTYPES[config.dtype],
    };
  }

  begin(from) {
    const ids = typeof from === "string" ? this.#tokenizer.encodePrompt(from) : from;
    this.#check(ids);
    return ids.map((id, i) => this.#tokenizer.shown(id, i > 0 ? ids[i - 1] : null));
  }

  next(ids, { state, seed, sampling, forced }) {
    const { c, error } = this.#library;
    this.#check(ids);
    const sampler = this.#setSampler(state === undefined ? { seed } : { state }, sampling);
    const before = this.#library.get("l2c_sampler", this.#sampler, "rng_state");
    this.#feed(ids);
    const n = this.#config.vocab_size;
    const row = c.l2c_session_logits(this.#session, 0) >>> 0;
    const logits = this.#library.floats(row, n);
    const history = this.#library.copy(Int32Array.from(ids));
    try {
      this.#library.check(c.l2c_session_sample(this.#session, 0, this.#sampler, history, ids.length, this.#library.out, error));
    } finally {
      this.#library.free(history);
    }
    const picked = this.#library.view().getInt32(this.#library.out, true);
    const left = this.#library.floats(row, n); // what the sampler chose by
    const after = this.#library.get("l2c_sampler", this.#sampler, "rng_state");
    const coin = tossed(before, after) ? coinOf(after) : null;
    const chosenByLine = coin !== null && left.every((value) => value >= 0 && value <= 1) && left.includes(1);
    const line = chosenByLine ? Line.drawn(left, sampler, coin) : Line.none(n, picked);
    if (line.taken !== picked) throw new Error(`the line has token ${line.taken} where the sampler took ${picked}`);
    const token = forced ?? picked;
    return {
      token,
      picked,
      ends: this.#tokenizer.ends.includes(token),
      position: ids.length,
      coin,
      target: line.target,
      order: line.order,
      kept: line.ids.length,
      ...line.interval(token),
      sum: line.sum,
      before: String(before),
      after: String(after),
      top: topTokens(line, logits, sampler, [token, picked], (id) => this.#tokenizer.shown(id, ids.at(-1))),
      logits,
    };
  }

  attention(ids, position) {
    const { n_layers, n_heads } = this.#config;
    this.#check(ids);
    if (!(ids[position] >= 0)) throw new Error(`position is ${position}; it must be 0 to ${ids.length - 1}`);
    this.#feed(ids.slice(0, position));
    const [row] = this.#rows([ids[position]], position);
    const n = n_layers * n_heads * (position + 1);
    const weights = this.#library.room(4 * n);
    try {
      this.#fed.length = position; // whatever fails
      this.#library.check(this.#library.c.l2c_session_attention(this.#session, row, weights, this.#library.error));
      this.#fed.push(ids[position]);
      return { position, layers: n_layers, heads: n_heads, weights: this.#library.floats(weights, n) };
    } finally {
      this.#library.free(row);
      this.#library.free(weights);
    }
  }

  /* told([[index, id], ...]) after each sweep */
  crowd(ids, { seed, sampling, length }, size, place, told) {
    const { c, error, out, more } = this.#library;
    this.#check(ids);
    const batch = this.#library.made((at, wrong) =>
      c.l2c_batch_create(this.#model, this.#pool, size, ids.length + length - 1, this.#facts.kv_dtype, ISA_AUTO, at, wrong));
    const [prompt, ends] = [ids, this.#tokenizer.ends].map((list) => this.#library.copy(Int32Array.from(list)));
    const request = this.#library.room(LAYOUT.l2c_request.size);
    try {
      const indexes = new Map();
      for (let i = 0; i < size; i++) {
        this.#setSampler({ seed: UINT64(BigInt(seed) + BigInt(i - place)) }, sampling);
        this.#library.put("l2c_request", request, {
          prompt, n_prompt: ids.length, ends, n_ends: this.#tokenizer.ends.length, sampler: this.#sampler,
          max_tokens: length, tell: TELL_TOKENS, n_top: 0,
        });
        this.#library.check(c.l2c_batch_add(batch, request, out, error));
        indexes.set(this.#library.view().getBigInt64(out, true), i);
      }
      while (c.l2c_batch_stories(batch) > 0) {
        this.#library.check(c.l2c_batch_step(batch, out, more, error));
        const events = Array.from({ length: this.#library.pointer(more) }, (_, i) => this.#library.pointer(out) + i * LAYOUT.l2c_event.size);
        const get = (event, name) => this.#library.get("l2c_event", event, name);
        told(events.filter((event) => get(event, "kind") === EVENT_TOKEN).map((event) => [indexes.get(get(event, "story")), get(event, "chosen.token")]));
      }
    } finally {
      c.l2c_batch_free(batch);
      for (const at of [prompt, ends, request]) this.#library.free(at);
    }
  }

  #check(ids) {
    const { vocab_size, seq_len } = this.#config;
    if (ids.length === 0) throw new Error("ids is empty; begin with BOS");
    if (ids.length > seq_len) throw new Error(`${ids.length} tokens; the model's context is ${seq_len}`);
    const wrong = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocab_size);
    if (wrong !== undefined) throw new Error(`token ${wrong} is outside the vocabulary of ${vocab_size}`);
  }

  /* Sets the module's sampler; returns its knobs, in float32. */
  #setSampler({ seed, state }, { temperature, top_p, top_k, min_p, repetition_penalty }) {
    const random = BigInt(state ?? seed);
    if (random !== UINT64(random)) throw new Error(`seed is ${random}; it must be 0 to 2**64 - 1`);
    this.#library.c.l2c_sampler_init(this.#sampler, random);
    const values = { temperature, top_p, top_k, min_p, repetition_penalty };
    this.#library.put("l2c_sampler", this.#sampler, state === undefined ? values : { ...values, rng_state: random });
    return { top_p: f32(top_p), top_k, min_p: f32(min_p) };
  }

  /* Rows of sequence 0, in memory that the caller frees, and their number; of the last the logits are wanted. */
  #rows(ids, position) {
    const { size } = LAYOUT.l2c_row;
    const rows = this.#library.room(size * ids.length);
    ids.forEach((token, i) => {
      const want_logits = i === ids.length - 1 ? 1 : 0;
      this.#library.put("l2c_row", rows + i * size, { sequence: 0, position: position + i, token, want_logits });
    });
    return [rows, ids.length];
  }

  /* Brings the session to these ids, with the logits after the last. */
  #feed(ids) {
    const { c, error } = this.#library;
    const most = c.l2c_session_max_rows(this.#session);
    let at = 0;
    while (at < ids.length - 1 && ids[at] === this.#fed[at]) at++;
    while (at < ids.length) {
      const part = ids.slice(at, at + most);
      const [rows, n] = this.#rows(part, at);
      this.#fed.length = at; // whatever fails
      try {
        this.#library.check(c.l2c_session_forward(this.#session, rows, n, error));
      } finally {
        this.#library.free(rows);
      }
      this.#fed.push(...part);
      at += n;
    }
  }
}
