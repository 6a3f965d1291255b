// A conversation with a transformers.js model whose past keys and values are kept compressed between its turns.
// `npm run transformers` installs what it imports; the model is one with random weights.
import { fileURLToPath } from "node:url";
import {
  AutoModelForCausalLM,
  AutoTokenizer,
  cat,
  DynamicCache,
  env,
  ones,
  Tensor,
} from "@huggingface/transformers";
import { openKvarn } from "kvarn";

env.allowRemoteModels = false;
env.localModelPath = fileURLToPath(new URL("../fixtures/", import.meta.url));
const tokenizer = await AutoTokenizer.from_pretrained("tiny-decoder");
const model = await AutoModelForCausalLM.from_pretrained("tiny-decoder", { dtype: "fp32" });

// #region cache
const { num_hidden_layers: layers, num_attention_heads: queryHeads } = model.config;
const { num_key_value_heads: kvHeads, head_dim: headDim } = model.config;
const kvarn = await openKvarn();
const cache = kvarn.createCache({ preset: "k4v2_g64", layers, queryHeads, kvHeads, headDim });

/** Appends what the cache does not have yet. transformers.js has it as [1, kvHeads, tokens, headDim]. */
async function keep(past) {
  for (let layer = 0; layer < layers; layer++) {
    const [k, v] = ["key", "value"].map((part) => {
      const tensor = past[`past_key_values.${layer}.${part}`];
      return tensor.slice(null, null, [cache.length(layer), null]).permute(0, 2, 1, 3).data;
    });
    await cache.append(layer, k, v);
  }
  await cache.flush();
}

/** All that the cache has, as past keys and values. */
async function recall() {
  const past = {};
  for (let layer = 0; layer < layers; layer++) {
    const { k, v } = await cache.read(layer);
    const shape = [1, cache.length(layer), kvHeads, headDim];
    past[`past_key_values.${layer}.key`] = new Tensor("float32", k, shape).permute(0, 2, 1, 3);
    past[`past_key_values.${layer}.value`] = new Tensor("float32", v, shape).permute(0, 2, 1, 3);
  }
  return new DynamicCache(past);
}
// #endregion

// #region turns
const prompt = "The cache keeps a key and a value for every token that the model has read. ".repeat(8);
const options = { max_new_tokens: 16, return_dict_in_generate: true };
const first = await model.generate({ ...tokenizer(prompt), ...options });
await keep(first.past_key_values); // and let go of them

const question = tokenizer("And what does the model do with them?");
const input_ids = cat([first.sequences, question.input_ids], 1);
const attention_mask = ones(input_ids.dims);
const past_key_values = await recall();
const second = await model.generate({ input_ids, attention_mask, past_key_values, ...options });
await keep(second.past_key_values); // its new tokens alone
// #endregion

const { totalBytes, ratio } = cache.memory();
console.log(`${cache.length(0)} tokens in ${totalBytes} bytes, ${ratio.toFixed(2)}x smaller than binary16`);

// What it cost: keys, values and the question's logits after the first turn, against the past as it was.
cache.truncate(0);
await keep(first.past_key_values);
const exact = new DynamicCache(first.past_key_values);
const kept = await recall();
const percent = (a, b) => {
  const energy = (values) => values.reduce((sum, value) => sum + value * value, 0);
  return `${(100 * Math.sqrt(energy(a.map((value, i) => value - b[i])) / energy(b))).toFixed(2)} %`;
};
for (const name of Object.keys(exact))
  console.log(`${name} off by`, percent(kept[name].data, exact[name].data));
const unread = input_ids.slice(null, [exact.get_seq_length(), null]);
const logits = async (past) =>
  (await model({ input_ids: unread, attention_mask, past_key_values: past })).logits.data;
console.log("logits off by", percent(await logits(kept), await logits(exact)));
kvarn.dispose();
