// Where the files of an artifact come from: beside the page, or dropped into it.
//
// Both give {description, bytes(name)}. The description is web.json, which `onnxq build` writes:
//   model    name of the ONNX file
//   data     names of its external data, as the model spells them
//   session  options of ort.InferenceSession.create
//   decode   {arrays, weights: [{decoder, inputs, path}]}: external data of these paths, which
//            small models compute from stored arrays; null when there are none
//   cache    {heads, size} of keys and values, where the model leaves them open
//   stop     tokens that end a text

const DESCRIPTION = "web.json";

/** A model that was not built for the web decodes in every run: folding it may take gigabytes. */
const UNFOLDED = {
  executionProviders: ["wasm"],
  extra: { optimization: { disable_specified_optimizers: "ConstantFolding" } },
};

/** The artifact in a folder of the server. */
export async function artifactBeside(folder = ".") {
  const bytes = async (name) => {
    const response = await fetch(`${folder}/${name}`);
    if (!response.ok) throw new Error(`${name} cannot be fetched: ${response.status}.`);
    return new Uint8Array(await response.arrayBuffer());
  };
  return { description: parse(await bytes(DESCRIPTION)), bytes };
}

/** The artifact made of File objects; without web.json among them, their names tell what they are. */
export async function artifactOf(files) {
  const found = new Map([...files].map((file) => [file.name, file]));
  const bytes = async (name) => {
    if (!found.has(name)) throw new Error(`${name} is missing: drop all files of the artifact.`);
    return new Uint8Array(await found.get(name).arrayBuffer());
  };
  if (found.has(DESCRIPTION)) return { description: parse(await bytes(DESCRIPTION)), bytes };
  const config = found.has("genai_config.json") ? parse(await bytes("genai_config.json")) : {};
  return { description: describe([...found.keys()], config), bytes };
}

/** The description of an artifact that was not built for the web. */
export function describe(names, config = {}) {
  const models = names.filter((name) => name.endsWith(".onnx"));
  if (models.length !== 1) throw new Error(`One .onnx file was expected, not ${models.length}.`);
  const stop = [config.model?.eos_token_id ?? []].flat();
  const { num_key_value_heads: heads, head_size: size } = config.model?.decoder ?? {};
  const data = names.filter((name) => name.startsWith(`${models[0]}.`) || name.endsWith(".data"));
  return { model: models[0], data, session: UNFOLDED, stop, cache: { heads, size } };
}

/** A JSON file of the artifact; null when it has none of that name. */
export async function jsonOf(artifact, name) {
  try {
    return parse(await artifact.bytes(name));
  } catch {
    return null;
  }
}

function parse(bytes) {
  return JSON.parse(new TextDecoder().decode(bytes));
}
