/** The builds of a WASM module as the package carries them: the strict one, and what the relaxed one changes in it. */

export type Build = "strict" | "relaxed";

/** Hexadecimal digits; `scripts/inline-wasm.mjs` writes them. */
export interface InlinedBuilds {
  readonly strictWasm: string;
  /** Edits of the strict build: bytes to keep, bytes to drop, bytes to insert, and these. Numbers are LEB128. */
  readonly relaxedEdits: string;
}

/** The module's bytes. */
export function readBuild(
  { strictWasm, relaxedEdits }: InlinedBuilds,
  build: Build,
): Uint8Array<ArrayBuffer> {
  const strict = fromHex(strictWasm);
  return build === "relaxed" ? applyEdits(strict, fromHex(relaxedEdits)) : strict;
}

function applyEdits(source: Uint8Array, edits: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes: number[] = [];
  let [from, at] = [0, 0];
  const readNumber = (): number => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = edits[at++];
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (at < edits.length) {
    const kept = from + readNumber();
    while (from < kept) bytes.push(source[from++]);
    from += readNumber();
    const end = readNumber() + at;
    while (at < end) bytes.push(edits[at++]);
  }
  return Uint8Array.from(bytes);
}

/** Bytes of hexadecimal digits, two each, in lower case. */
export function fromHex(text: string): Uint8Array<ArrayBuffer> {
  const digit = (at: number): number => {
    const code = text.charCodeAt(at);
    return code < 97 ? code - 48 : code - 87;
  };
  return Uint8Array.from({ length: text.length / 2 }, (_, i) => digit(2 * i) * 16 + digit(2 * i + 1));
}
