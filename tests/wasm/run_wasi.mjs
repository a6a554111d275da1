// Runs a program that was compiled to wasm32-wasi: node --single-threaded run_wasi.mjs PROGRAM FOLDER ARGUMENT...
// The folder is its /tmp, or / all of its files. With more threads Node 20 may end with a segmentation fault, after the
// program has ended well.
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";

const [program, folder, ...rest] = process.argv.slice(2);
const preopens = { [folder === "/" ? "/" : "/tmp"]: folder };
const wasi = new WASI({ version: "preview1", args: [program, ...rest], preopens, returnOnExit: true });
const { instance } = await WebAssembly.instantiate(readFileSync(program), wasi.getImportObject());
process.exitCode = wasi.start(instance);
