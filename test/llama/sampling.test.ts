/** How the example chooses tokens. */
import { expect, it } from "vitest";
import { greedy, sampler } from "../../examples/llama/sampling.js";

const logits = Float32Array.of(1, 3, -2, 3, 0);

function draw(count: number, temperature: number, seed: number): number[] {
  const sample = sampler(temperature, seed);
  return Array.from({ length: count }, () => sample(logits));
}

it("is greedy at temperature 0: the likeliest token, of equals the first", () => {
  expect(greedy(logits)).toBe(1);
  expect(draw(20, 0, 5)).toEqual(new Array(20).fill(1));
});

it("draws the same tokens with the same seed, others with another", () => {
  expect(draw(50, 1, 1)).toEqual(draw(50, 1, 1));
  expect(draw(50, 1, 1)).not.toEqual(draw(50, 1, 2));
});

it.each([0.5, 1, 3])("draws as often as the softmax at temperature %d says", (temperature) => {
  const weights = Array.from(logits, (logit) => Math.exp(logit / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  const count = 20_000;
  const drawn = draw(count, temperature, 3);
  weights.forEach((weight, token) => {
    const share = drawn.filter((one) => one === token).length / count;
    const expected = weight / total;
    // Four standard deviations.
    expect(Math.abs(share - expected)).toBeLessThan(4 * Math.sqrt((expected * (1 - expected)) / count));
  });
});
