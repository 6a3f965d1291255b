// A page that uses the package, the same for every bundler. GPUs have a test of their own.
import { check } from "./check.js";

globalThis.result = check({ gpu: false });
