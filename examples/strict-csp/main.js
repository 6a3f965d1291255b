// What the page runs. With a bundler it imports "kvarn".
/* global document */
import { openKvarn } from "/kvarn/index.js";

const kvarn = await openKvarn();
const cache = kvarn.createCache({ layers: 1, queryHeads: 4, kvHeads: 2, headDim: 64 });
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
await cache.append(0, random(300 * 2 * 64), random(300 * 2 * 64));
await cache.attend(0, random(4 * 64));

const { kind, reason } = kvarn.backend;
document.querySelector("output").textContent = `${cache.length(0)} tokens on ${kind}: ${reason}`;
