// Greedy generation with a key/value cache.
//
// Inputs are named as exporters do: input_ids, attention_mask, position_ids, past_key_values.N.key
// and .value [batch, heads, past, head size]; outputs: logits, present.N.key and .value.

import { inputsOf, integers } from "./session.js";

const PAST = /^past(_key_values)?\./;

/** Whether a model is a decoder with a cache. */
export function isDecoder(session) {
  return session.outputNames.includes("logits") && session.inputNames.some((name) => PAST.test(name));
}

/**
 * Yield the most probable tokens one by one.
 *
 * @param prompt token ids, at least one
 * @param most tokens to make at most
 * @param stop tokens behind which it ends
 * @param cache {heads, size} of keys and values, where the model leaves them open
 */
export async function* generate(ort, session, prompt, { most, stop = [], cache: shape }) {
  let cache = emptyCache(ort, session, shape);
  let ids = prompt;
  for (let made = 0, seen = 0; made < most; made += 1) {
    const results = await session.run({ ...cache, ...tokenFeeds(ort, session, ids, seen) });
    seen += ids.length;
    const next = largestOfLastRow(results.logits);
    yield next;
    if (stop.includes(next)) return;
    cache = cacheOf(session, results);
    ids = [next];
  }
}

/** Feeds for tokens behind `seen` others. */
function tokenFeeds(ort, session, ids, seen) {
  const places = ids.map((_, index) => seen + index);
  const known = {
    input_ids: ids,
    position_ids: places,
    attention_mask: new Array(seen + ids.length).fill(1),
  };
  const feeds = {};
  for (const { name, type } of inputsOf(session).values()) {
    if (PAST.test(name)) continue;
    if (!(name in known)) throw new Error(`The decoder has an input ${name}, which is unknown here.`);
    feeds[name] = integers(ort, type, known[name], [1, known[name].length]);
  }
  return feeds;
}

/** Keys and values of no token; heads and size where the model leaves them open. */
function emptyCache(ort, session, known = {}) {
  const feeds = {};
  for (const { name, type, shape } of inputsOf(session).values()) {
    if (!PAST.test(name)) continue;
    const [heads, size] = [shape[1], shape[3]].map((dim, at) =>
      Number.isInteger(dim) ? dim : [known.heads, known.size][at]);
    if (!Number.isInteger(heads) || !Number.isInteger(size)) {
      throw new Error(`The cache ${name} has shape [${shape}]: heads and head size must be known.`);
    }
    const empty = type === "float16" ? new Uint16Array(0) : new Float32Array(0);
    feeds[name] = new ort.Tensor(type, empty, [1, heads, 0, size]);
  }
  return feeds;
}

/** Keys and values of a run, under the names they are fed by. */
function cacheOf(session, results) {
  const names = session.inputNames.filter((name) => PAST.test(name));
  return Object.fromEntries(names.map((name) => [name, results[name.replace(PAST, "present.")]]));
}

/** Index of the largest entry of the last row of logits [1, tokens, vocabulary]. */
function largestOfLastRow({ data, dims }) {
  const vocabulary = dims.at(-1);
  const row = data.subarray(data.length - vocabulary);
  let best = 0;
  for (let index = 1; index < vocabulary; index += 1) if (row[index] > row[best]) best = index;
  return best;
}
