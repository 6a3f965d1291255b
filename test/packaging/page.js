// A page that uses the package, the same for every bundler.
import { check } from "./check.js";

globalThis.check = check;
