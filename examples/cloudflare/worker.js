// A Cloudflare Worker that takes a saved cache, checks it, and says what it holds.
import { KvarnError, openKvarn } from "kvarn";
import wasm from "kvarn/kvarn.wasm";

const kvarn = await openKvarn({ backend: "wasm", wasm });

export default {
  async fetch(request) {
    if (request.method !== "POST") return new Response("POST a saved cache", { status: 405 });
    try {
      const cache = await kvarn.restoreCache(new Uint8Array(await request.arrayBuffer()));
      try {
        return Response.json({ tokens: cache.length(0), ...cache.memory() });
      } finally {
        cache.dispose(); // the next request finds the memory free
      }
    } catch (error) {
      if (!(error instanceof KvarnError)) throw error;
      return Response.json({ code: error.code, message: error.message }, { status: 400 });
    }
  },
};
