// A worker that checks the package when it is sent options: dedicated, shared or service worker, whichever it is run as.
import { checkAllThere } from "./check-all.js";

// Not every browser tells the test what a worker says.
const noise = [];
for (const level of ["debug", "log", "info", "warn", "error"]) {
  console[level] = (...words) => noise.push(words.join(" "));
}
globalThis.onerror = (message) => void noise.push(String(message));
globalThis.onunhandledrejection = ({ reason }) => void noise.push(String(reason));

async function answer(options, port) {
  try {
    port.postMessage({ report: { ...(await checkAllThere(options)), noise } });
  } catch (error) {
    port.postMessage({ error: String(error.stack) });
  }
}

globalThis.onconnect = ({ ports: [port] }) => {
  port.onmessage = ({ data }) => void answer(data, port);
};
globalThis.onmessage = (event) => {
  const answered = answer(event.data, event.source ?? globalThis);
  event.waitUntil?.(answered);
};
