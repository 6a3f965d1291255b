// Checks an implementation of the method. Here it is this package's own, with fewer functions than it has.
import { openKvarn } from "kvarn";
import { adapterOf } from "kvarn/conformance";

const kvarn = await openKvarn({ backend: "wasm" });
const { encode, decode, rotate } = adapterOf(kvarn);

// #region run
import { runConformance } from "kvarn/conformance";
const report = await runConformance({ encode, decode, rotate /* attend, createCache … */ });
console.log(report.passed, report.counts);
// And report.checks: passed, failed, or not covered for want of a function.
// #endregion

kvarn.dispose();
