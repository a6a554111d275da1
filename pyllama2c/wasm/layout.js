/* Structs of csrc/llama2c.h in WebAssembly's memory: sizes, and where fields are and what they are (DataView's names).
   csrc/system/wasm.c checks each of these numbers when it is compiled. JSON, for tests to read. */
const LAYOUT = {
  "l2c_error": {"size": 264, "message": [8, "Uint8"]},
  "l2c_config": {
    "size": 64, "dim": [0, "Int32"], "hidden_dim": [4, "Int32"], "n_layers": [8, "Int32"], "n_heads": [12, "Int32"],
    "n_kv_heads": [16, "Int32"], "head_size": [20, "Int32"], "vocab_size": [24, "Int32"], "seq_len": [28, "Int32"],
    "dtype": [60, "Int32"]
  },
  "l2c_row": {"size": 16, "sequence": [0, "Int32"], "position": [4, "Int32"], "token": [8, "Int32"], "want_logits": [12, "Int32"]},
  "l2c_sampler": {
    "size": 48, "temperature": [0, "Float32"], "top_p": [4, "Float32"], "top_k": [8, "Int32"], "min_p": [12, "Float32"],
    "repetition_penalty": [16, "Float32"], "rng_state": [40, "BigUint64"]
  },
  "l2c_request": {
    "size": 32, "prompt": [0, "Uint32"], "n_prompt": [4, "Uint32"], "ends": [8, "Uint32"], "n_ends": [12, "Uint32"],
    "sampler": [16, "Uint32"], "max_tokens": [20, "Int32"], "tell": [24, "Int32"], "n_top": [28, "Int32"]
  },
  "l2c_event": {"size": 48, "story": [0, "BigInt64"], "kind": [8, "Int32"], "chosen.token": [16, "Int32"]},
  "l2c_vocabulary": {
    "size": 48, "n_pieces": [0, "Int32"], "text": [4, "Uint32"], "text_bytes": [8, "Uint32"], "lengths": [12, "Uint32"],
    "types": [16, "Uint32"], "scores": [20, "Uint32"], "merges": [24, "Uint32"], "n_merges": [28, "Int32"],
    "split_spaces": [32, "Int32"], "bos": [36, "Int32"], "eos": [40, "Int32"], "unknown": [44, "Int32"]
  }
};
