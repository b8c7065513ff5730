// Opens a model in onnxruntime-web, makes tensors for it, and tells what memory it takes.
//
// `ort` is handed in: the page takes it from runtime/, a check in Node.js from the same files.

/** The array of each type of tensors. */
export const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: globalThis.Float16Array ?? Uint16Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, bool: Uint8Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

const memories = [];

/** Record every WebAssembly memory from now on: call it before onnxruntime-web is started. */
export function watchMemory() {
  const Memory = WebAssembly.Memory;
  WebAssembly.Memory = class extends Memory {
    constructor(descriptor) {
      super(descriptor);
      memories.push(this);
    }
  };
}

/** Bytes of the recorded memories. A WebAssembly memory never shrinks, so this is its peak. */
export function memoryBytes() {
  return memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
}

/**
 * Open the model of an artifact; weights of few bits are decoded first.
 *
 * @param artifact as artifact.js gives it: its description, and bytes(name) of its files
 * @returns an ort.InferenceSession
 */
export async function openModel(ort, artifact) {
  const { model, data, session, decode } = artifact.description;
  const decoded = decode ? await decodedWeights(ort, artifact, decode) : [];
  const externalData = [...(await filesOf(artifact, data)), ...decoded];
  return ort.InferenceSession.create(await artifact.bytes(model), { ...session, externalData });
}

/**
 * The weights that are computed from stored arrays, as external data: one after the other, each by
 * the small model of its shape, so that little memory is taken besides.
 */
async function decodedWeights(ort, artifact, { arrays, weights }) {
  const stored = await artifact.bytes(arrays);
  const decoders = new Map();
  const found = [];
  for (const { decoder, inputs, path } of weights) {
    if (!decoders.has(decoder)) {
      const options = { executionProviders: ["wasm"], graphOptimizationLevel: "disabled" };
      const model = await artifact.bytes(decoder);
      decoders.set(decoder, await ort.InferenceSession.create(model, options));
    }
    const session = decoders.get(decoder);
    const tensors = inputs.map((input) => storedTensor(ort, stored, input));
    const feeds = Object.fromEntries(session.inputNames.map((name, at) => [name, tensors[at]]));
    const { buffer, byteOffset, byteLength } = (await session.run(feeds)).weight.data;
    found.push({ path, data: new Uint8Array(buffer, byteOffset, byteLength) });
  }
  for (const session of decoders.values()) await session.release();
  return found;
}

function storedTensor(ort, stored, { type, dims, offset, bytes }) {
  return new ort.Tensor(type, new ARRAYS[type](stored.slice(offset, offset + bytes).buffer), dims);
}

async function filesOf(artifact, names) {
  return Promise.all(names.map(async (path) => ({ path, data: await artifact.bytes(path) })));
}

/** A tensor of whole numbers in the type that an input has. */
export function integers(ort, type, values, dims) {
  if (type === "int64") return new ort.Tensor(type, BigInt64Array.from(values, BigInt), dims);
  if (type === "int32") return new ort.Tensor(type, Int32Array.from(values), dims);
  throw new Error(`An input of tokens has type ${type}; int64 or int32 was expected.`);
}

/** What the session says of its inputs, by name: {name, type, shape}. */
export function inputsOf(session) {
  return new Map(session.inputMetadata.map((input) => [input.name, input]));
}
