// Runs a program that was compiled to wasm32-wasi: node run_wasi.mjs PROGRAM FOLDER, which is its /tmp.
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";

const [program, folder] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program], preopens: { "/tmp": folder } });
const { instance } = await WebAssembly.instantiate(readFileSync(program), wasi.getImportObject());
wasi.start(instance);
