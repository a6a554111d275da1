/* csrc/llama2c.h from JavaScript: the module's memory, structs in it, and errors as exceptions. */

class Library {
  static async load(module) {
    const { instance } = await WebAssembly.instantiate(module, {});
    instance.exports._initialize();
    return new Library(instance.exports);
  }

  constructor(c) {
    this.c = c;
    this.error = this.room(LAYOUT.l2c_error.size);
    this.out = this.room(8); // where calls write what they make, a pointer or a number
    this.more = this.room(8);
  }

  /* Memory moves when it grows: a view is for at once. */
  view() {
    return new DataView(this.c.memory.buffer);
  }

  room(size) {
    const at = this.c.malloc(size || 1) >>> 0;
    if (at === 0) throw new Error("out of memory");
    return at;
  }

  free(at) {
    this.c.free(at);
  }

  bytes(at, n) {
    return new Uint8Array(this.c.memory.buffer, at, n);
  }

  floats(at, n) {
    return new Float32Array(this.c.memory.buffer, at, n).slice();
  }

  /* A copy of `data`, a typed array, in the module's memory. */
  copy(data) {
    const at = this.room(data.byteLength);
    this.bytes(at, data.byteLength).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return at;
  }

  put(struct, at, values) {
    const view = this.view();
    for (const [name, value] of Object.entries(values)) {
      const [offset, type] = LAYOUT[struct][name];
      view[`set${type}`](at + offset, value, true);
    }
  }

  get(struct, at, name) {
    const [offset, type] = LAYOUT[struct][name];
    return this.view()[`get${type}`](at + offset, true);
  }

  pointer(at) {
    return this.view().getUint32(at, true);
  }

  check(status) {
    if (status === 0) return;
    const text = this.bytes(this.error + LAYOUT.l2c_error.message[0], LAYOUT.l2c_error.size - LAYOUT.l2c_error.message[0]);
    throw new Error(new TextDecoder().decode(text.slice(0, text.indexOf(0))));
  }

  /* The object that a call makes; the call gets where to write it, and where to write an error. */
  made(call) {
    this.check(call(this.out, this.error));
    return this.pointer(this.out);
  }
}
