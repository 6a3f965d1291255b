/** Measures in a worker of its own, which the page ends when the settings change. */
import { measureBackends, type MeasureTask } from "./backends.js";

addEventListener("message", ({ data }: MessageEvent<MeasureTask>) => {
  void measureBackends(data, (report) => postMessage(report)).then(() => postMessage("done"));
});
