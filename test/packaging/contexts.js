// The places in a browser where the package can run.
/* global navigator, SharedWorker, Worker */
import { checkAllThere } from "./check-all.js";

const WORKER = "./worker.js";
const MODULE = { type: "module" };

export const contexts = {
  page: checkAllThere,

  worker: (options) =>
    new Promise((resolve, reject) => {
      const worker = new Worker(WORKER, MODULE);
      take(worker, resolve, reject);
      worker.postMessage(options);
    }),

  "shared worker": (options) =>
    new Promise((resolve, reject) => {
      const worker = new SharedWorker(WORKER, MODULE);
      worker.onerror = reject;
      take(worker.port, resolve, reject);
      worker.port.postMessage(options);
    }),

  "service worker": async (options) => {
    const { active, waiting, installing } = await navigator.serviceWorker.register(WORKER, MODULE);
    return new Promise((resolve, reject) => {
      take(navigator.serviceWorker, resolve, reject);
      (active ?? waiting ?? installing).postMessage(options);
    });
  },
};

/** Takes the one message that a worker sends. */
function take(target, resolve, reject) {
  target.onerror = ({ message }) => reject(new Error(message));
  target.onmessage = ({ data: { report, error } }) => (report ? resolve(report) : reject(new Error(error)));
}
