import { KvarnError } from "../errors.js";

/** Throws unless groups divide what there is of tokens or channels. */
export function checkGroups(group: number, count: number, what: "tokens" | "channels"): void {
  if (count % group === 0) return;
  throw new KvarnError("invalid-shape", `groups of ${group} do not divide ${count} ${what}`);
}
