// A worker that checks the package when it is asked to: dedicated, shared or service worker, whichever it is run as.
import { check } from "./check.js";

async function answer(port) {
  try {
    port.postMessage({ report: await check() });
  } catch (error) {
    port.postMessage({ error: String(error.stack) });
  }
}

globalThis.onconnect = ({ ports }) => void answer(ports[0]);
globalThis.onmessage = (event) => {
  const answered = answer(event.source ?? globalThis);
  event.waitUntil?.(answered);
};
