// The page: open an artifact, take a text, show what the model makes of it, and how fast.

import * as ort from "./runtime/ort.wasm.min.mjs";
import { Tokenizer } from "./runtime/tokenizers.min.mjs";
import { artifactBeside, artifactOf, jsonOf } from "./artifact.js";
import { cosine, embed, isEncoder } from "./embed.js";
import { generate, isDecoder } from "./generate.js";
import { memoryBytes, openModel, watchMemory } from "./session.js";

const MOST_THREADS = 4;
const element = (id) => document.getElementById(id);
let opened = null;

watchMemory();
ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
// Threads need memory that is shared, which browsers give to pages that are served isolated.
ort.env.wasm.numThreads = crossOriginIsolated
  ? Math.min(MOST_THREADS, navigator.hardwareConcurrency)
  : 1;

/** Run a step; the page says what it does meanwhile, and what went wrong. */
async function step(title, work) {
  const status = element("status");
  status.dataset.state = "busy";
  status.textContent = title;
  element("run").disabled = true;
  try {
    status.textContent = await work();
    status.dataset.state = "ready";
  } catch (error) {
    status.textContent = error.message ?? String(error);
    status.dataset.state = "failed";
  }
  element("run").disabled = opened === null;
}

/** Load model and tokenizer. */
async function open(finding) {
  await step("Loading the artifact.", async () => {
    opened?.session.release();
    opened = null;
    element("model").textContent = "No artifact is loaded.";
    const start = performance.now();
    const artifact = await finding;
    const tokens = await jsonOf(artifact, "tokenizer.json");
    if (tokens === null) throw new Error("The artifact has no tokenizer.json: text cannot be read.");
    const settings = (await jsonOf(artifact, "tokenizer_config.json")) ?? {};
    const session = await openModel(ort, artifact);
    if (!isDecoder(session) && !isEncoder(session)) {
      throw new Error(`This page runs decoders with a cache and encoders, not a model of
        ${session.inputNames} to ${session.outputNames}.`);
    }
    opened = { artifact, session, tokenizer: new Tokenizer(tokens, settings), last: null };
    element("output").textContent = "";
    const kind = isDecoder(session) ? "continues a text" : "makes a vector of a text";
    element("model").textContent =
      `${artifact.description.model}, ${megabytes(await size(artifact))}, ${kind}.`;
    return `Loaded in ${((performance.now() - start) / 1000).toFixed(1)} s; ${memory()}.`;
  });
}

/** What the files of the model take. */
async function size({ description: { model, data, decode }, bytes }) {
  const decoding = decode ? [decode.arrays, ...new Set(decode.weights.map((one) => one.decoder))] : [];
  const files = await Promise.all([model, ...data, ...decoding].map(bytes));
  return files.reduce((sum, file) => sum + file.byteLength, 0);
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const memory = () => `${megabytes(memoryBytes())} of memory, ${ort.env.wasm.numThreads} threads`;
const painted = () => new Promise((resolve) => setTimeout(resolve));

/** Continue the text. */
async function writeOn(text) {
  const { artifact, session, tokenizer } = opened;
  const output = element("output");
  const prompt = tokenizer.encode(text, { add_special_tokens: false }).ids;
  const ids = [];
  const start = performance.now();
  let first = start;
  const most = Number(element("most").value);
  const { stop, cache } = artifact.description;
  for await (const id of generate(ort, session, prompt, { most, stop, cache })) {
    if (ids.push(id) === 1) first = performance.now();
    output.textContent = text + tokenizer.decode(ids, { skip_special_tokens: true });
    output.dataset.ids = ids.join(" ");
    await painted();
  }
  const later = (performance.now() - first) / 1000;
  const rate = ids.length > 1 ? `, then ${((ids.length - 1) / later).toFixed(2)} tokens/s` : "";
  return `${prompt.length} tokens read in ${((first - start) / 1000).toFixed(2)} s${rate}; ${memory()}.`;
}

/** The vector of the text, beside that of the text before it. */
async function compare(text) {
  const { session, tokenizer, last } = opened;
  const output = element("output");
  const { ids } = tokenizer.encode(text);
  const start = performance.now();
  const vector = await embed(ort, session, ids);
  const seconds = (performance.now() - start) / 1000;
  const shown = [...vector.slice(0, 8)].map((value) => value.toFixed(4)).join(", ");
  const likeness = last && ` Cosine with the text before: ${cosine(last, vector).toFixed(4)}.`;
  output.textContent = `[${shown}, ...] of ${vector.length}.${likeness ?? ""}`;
  output.dataset.ids = ids.join(" ");
  output.dataset.vector = vector.join(" ");
  opened.last = vector;
  return `${ids.length} tokens in ${seconds.toFixed(2)} s; ${memory()}.`;
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("text").value;
  step("Running.", () => (isDecoder(opened.session) ? writeOn(text) : compare(text)));
});
element("files").addEventListener("change", ({ target }) => open(artifactOf(target.files)));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    element("drop").toggleAttribute("data-over", name === "dragover");
  });
}
document.addEventListener("drop", ({ dataTransfer }) => open(artifactOf(dataTransfer.files)));
open(artifactBeside());
