/* Text to ids and back, by the module's tokenizer. What surrounds it is that of pyllama2c/tokenizers: `facts` has
     {kind: "file"} or {kind: "lists", n_pieces, n_merges, text_bytes, split_spaces, bos, eos, unknown},
   and {add_bos, adds_space, scheme, ends, decoded: [[id, text]], as_is: [id], special: [[text, id]], user_defined: [[text, id]]}. */

class Tokenizer {
  #library;
  #handle;
  #facts;
  #decoded;
  #special;
  #asIs;

  constructor(library, data, facts, vocabSize) {
    this.#library = library;
    this.#facts = facts;
    this.#handle = facts.kind === "file" ? this.#open(data, vocabSize) : this.#create(data);
    this.#decoded = new Map(facts.decoded.map(([id, text]) => [id, new TextEncoder().encode(text)]));
    this.#asIs = new Set(facts.as_is);
    this.#special = new Map([...facts.special, ...facts.user_defined].reverse().map(([text, id]) => [id, text]));
    this.bos = library.c.l2c_tokenizer_bos(this.#handle);
    this.ends = facts.ends;
  }

  #open(data, vocabSize) {
    const at = this.#library.copy(data);
    const handle = this.#library.made((out, error) => this.#library.c.l2c_tokenizer_open_memory(at, data.length, vocabSize, out, error));
    this.#library.free(at);
    return handle;
  }

  /* From scores, lengths, types, merges and text, one behind the other. */
  #create(data) {
    const { n_pieces, n_merges, text_bytes, split_spaces, bos, eos, unknown } = this.#facts;
    const scores = this.#library.copy(data);
    const lengths = scores + 4 * n_pieces;
    const types = lengths + 4 * n_pieces;
    const merges = types + 4 * n_pieces;
    const text = merges + 8 * (n_merges ?? 0);
    const vocabulary = this.#library.room(LAYOUT.l2c_vocabulary.size);
    this.#library.put("l2c_vocabulary", vocabulary, {
      n_pieces, text, text_bytes, lengths, types, scores, merges: n_merges === null ? 0 : merges, n_merges: n_merges ?? 0,
      split_spaces: split_spaces ? 1 : 0, bos, eos, unknown,
    });
    const handle = this.#library.made((out, error) => this.#library.c.l2c_tokenizer_create(vocabulary, out, error));
    this.#library.free(vocabulary);
    this.#library.free(scores);
    return handle;
  }

  /* Ids of a text that is to be continued. */
  encodePrompt(text) {
    if (/\p{Surrogate}/u.test(text)) throw new Error("text cannot be encoded as UTF-8: it has half of a surrogate pair");
    const ids = this.bos >= 0 && (this.#facts.add_bos || text === "") ? [this.bos] : [];
    let afterToken = true;
    this.#split(text).forEach((part, i) => {
      if (typeof part === "number") ids.push(part);
      else if (part) ids.push(...this.#encode(part, afterToken && this.#spaceBefore(part, i === 0)));
      afterToken = typeof part === "number";
    });
    return ids;
  }

  /* The text with each user-defined token in it, the longest first, replaced by its id. */
  #split(text) {
    const tokens = this.#facts.user_defined;
    if (tokens.length === 0) return [text];
    const ids = new Map(tokens.toReversed());
    const pattern = new RegExp(tokens.map(([token]) => token.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|"), "gu");
    const parts = [];
    let at = 0;
    for (const match of text.matchAll(pattern)) {
      if (at < match.index) parts.push(text.slice(at, match.index));
      parts.push(ids.get(match[0]));
      at = match.index + match[0].length;
    }
    if (at < text.length) parts.push(text.slice(at));
    return parts;
  }

  #spaceBefore(text, opens) {
    const { scheme, adds_space } = this.#facts;
    if (scheme !== "first" && scheme !== "always") return adds_space;
    return (opens || scheme === "always") && !/^[ \u2581]/.test(text);
  }

  #encode(text, spaceFirst) {
    const library = this.#library;
    const data = new TextEncoder().encode(text);
    const at = library.copy(data);
    const tokens = library.room(4 * 3 * (data.length + 1));
    try {
      library.check(library.c.l2c_tokenizer_encode(this.#handle, at, data.length, spaceFirst ? 1 : 0, tokens, library.out, library.error));
      return [...new Int32Array(library.c.memory.buffer, tokens, library.pointer(library.out))];
    } finally {
      library.free(tokens);
      library.free(at);
    }
  }

  #piece(id) {
    const { c, out, more } = this.#library;
    const decoded = this.#decoded.get(id);
    if (decoded) return decoded;
    if (c.l2c_tokenizer_piece(this.#handle, id, out, more) !== 0) throw new Error(`token ${id} is outside the vocabulary`);
    return this.#library.bytes(this.#library.pointer(out), this.#library.pointer(more)).slice();
  }

  /* A token and its text, after the token before it: the first of a text loses the space that was put before it. */
  shown(id, before) {
    let piece = this.#piece(id);
    const opens = this.#facts.adds_space && before === this.bos && !this.#asIs.has(id);
    if (opens && piece[0] === 0x20) piece = piece.slice(1);
    const text = piece.length > 0 ? new TextDecoder("utf-8", { ignoreBOM: true }).decode(piece) : (this.#special.get(id) ?? "");
    return { id, text, bytes: [...piece] };
  }
}
