// Runs a built folder in Node.js, with the very WebAssembly that the page uses.
//
//   node verify.mjs FOLDER < feeds.json > results.json
//
// Feeds are a list, of {name: {type, dims, data}} for each sample, data in base64; results are
// {outputs, memory}, outputs such a list, memory in bytes.

import { Buffer } from "node:buffer";
import { readFile } from "node:fs/promises";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { ARRAYS, memoryBytes, openModel, watchMemory } from "./session.js";

const folder = pathToFileURL(`${process.argv[2]}/`);
const bytes = async (name) => new Uint8Array(await readFile(new URL(name, folder)));

function decoded(ort, { type, dims, data }) {
  const { buffer, byteOffset, byteLength } = Buffer.from(data, "base64");
  const copy = buffer.slice(byteOffset, byteOffset + byteLength);
  return new ort.Tensor(type, new ARRAYS[type](copy), dims);
}

function encoded({ type, dims, data }) {
  const { buffer, byteOffset, byteLength } = data;
  return { type, dims, data: Buffer.from(buffer, byteOffset, byteLength).toString("base64") };
}

watchMemory();
const ort = await import(new URL("runtime/ort.wasm.min.mjs", folder));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = await bytes("runtime/ort-wasm-simd-threaded.wasm");
const samples = JSON.parse(await readFile("/dev/stdin", "utf-8"));
const description = JSON.parse(await readFile(new URL("web.json", folder), "utf-8"));
const session = await openModel(ort, { description, bytes });
const mapped = (tensors, change) =>
  Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, change(tensor)]));
const outputs = [];
for (const feeds of samples) {
  const results = await session.run(mapped(feeds, (feed) => decoded(ort, feed)));
  outputs.push(mapped(results, encoded));
}
process.stdout.write(JSON.stringify({ outputs, memory: memoryBytes() }));
