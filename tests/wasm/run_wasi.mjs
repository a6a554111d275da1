// Runs a program that was compiled to wasm32-wasi: node run_wasi.mjs PROGRAM FOLDER ARGUMENT...; the folder is its /tmp,
// or / all of its files.
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";

const [program, folder, ...rest] = process.argv.slice(2);
const preopens = { [folder === "/" ? "/" : "/tmp"]: folder };
const wasi = new WASI({ version: "preview1", args: [program, ...rest], preopens });
const { instance } = await WebAssembly.instantiate(readFileSync(program), wasi.getImportObject());
wasi.start(instance);
