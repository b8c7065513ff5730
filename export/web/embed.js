// A text to a vector: the mean of the last hidden states, of length one.

import { inputsOf, integers } from "./session.js";

/** Whether a model takes tokens and gives a hidden state for each. */
export function isEncoder(session) {
  return session.inputNames.includes("input_ids") && session.outputMetadata[0].shape?.length === 3;
}

/** The vector of token ids, [size]. */
export async function embed(ort, session, ids) {
  const known = {
    input_ids: ids,
    attention_mask: new Array(ids.length).fill(1),
    token_type_ids: new Array(ids.length).fill(0),
  };
  const feeds = {};
  for (const { name, type } of inputsOf(session).values()) {
    if (!(name in known)) throw new Error(`The encoder has an input ${name}, which is unknown here.`);
    feeds[name] = integers(ort, type, known[name], [1, ids.length]);
  }
  const { data, dims } = (await session.run(feeds))[session.outputNames[0]];
  return normalized(meanOfRows(data, dims.at(-1)));
}

/** The cosine of the angle between two vectors of length one. */
export function cosine(left, right) {
  return left.reduce((sum, value, index) => sum + value * right[index], 0);
}

function meanOfRows(data, size) {
  const sums = new Float64Array(size);
  data.forEach((value, index) => (sums[index % size] += value));
  return sums.map((sum) => sum / (data.length / size));
}

function normalized(vector) {
  const length = Math.sqrt(cosine(vector, vector));
  return vector.map((value) => value / length);
}
