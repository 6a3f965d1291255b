// What makes one build of a module of another, nearly the same one: a list of edits, read by `src/wasm/builds.ts`.

/** Bytes in a row that must agree for builds to count as the same again. */
const SAME = 6;
/** How far ahead that is looked for, in both together. */
const REACH = 800;

/**
 * Edits, each: bytes to keep of `from`, bytes of it to drop, bytes to insert, and these bytes. Numbers are LEB128.
 * @param {Uint8Array} from
 * @param {Uint8Array} to
 */
export function makeEdits(from, to) {
  const edits = [];
  let [source, target] = [0, 0];
  while (target < to.length) {
    const start = target;
    while (target < to.length && from[source] === to[target]) {
      source++;
      target++;
    }
    const [drop, insert] = findSame(from.subarray(source), to.subarray(target));
    edits.push(...leb128(target - start), ...leb128(drop), ...leb128(insert));
    edits.push(...to.subarray(target, target + insert));
    source += drop;
    target += insert;
  }
  return Uint8Array.from(edits);
}

/** The fewest bytes to drop and to insert until the two agree again, or all that is left. */
function findSame(from, to) {
  for (let both = 1; both <= REACH; both++) {
    for (let drop = 0; drop <= both; drop++) {
      if (areSame(from, drop, to, both - drop)) return [drop, both - drop];
    }
  }
  return [from.length, to.length];
}

function areSame(a, atA, b, atB) {
  if (atA + SAME > a.length || atB + SAME > b.length) return false;
  for (let i = 0; i < SAME; i++) if (a[atA + i] !== b[atB + i]) return false;
  return true;
}

function leb128(value) {
  const bytes = [];
  for (; value > 127; value >>>= 7) bytes.push((value & 127) | 128);
  return [...bytes, value];
}
