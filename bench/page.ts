/** What runs in a page. */
import type { Report } from "./report.js";
import { runCases, type RunOptions } from "./run.js";

/** Runs cases here; what goes wrong comes back as a message, as nothing else gets out of a page. */
export async function run(options: RunOptions): Promise<Report | { error: string }> {
  try {
    return await runCases(options, () => {});
  } catch (error) {
    return { error: String(error) };
  }
}
