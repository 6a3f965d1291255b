/**
 * WGSL as it lies in `shaders/`, made ready for one shape. The files are plain WGSL with three kinds of directives, each
 * on a comment line of its own, so that what they enclose reads and parses as WGSL before it is expanded, too:
 *
 * - `//# include half` puts `shaders/half.wgsl` in its place, once per shader.
 * - `//# for c in A..B` … `//# end` repeats the lines between with c = A, …, B-1. Inside, `_c` as the last part, or a middle
 *   part, of a name becomes `_0`, `_1`, …, and `$c` anywhere the number itself. WGSL has no arrays that live in
 *   registers whatever indexes them; names do.
 * - `//# if X` … `//# else` … `//# end` keeps one side.
 *
 * Bounds and conditions are JavaScript-like expressions of integers and the shape's constants: `D / 16`, `BITS == 4`,
 * `!KEYS`. The same constants set the `override` declarations of the file.
 */

export type Constants = Readonly<Record<string, number>>;

/**
 * Expands a shader.
 * @param name file in `shaders/`, without its ending
 * @param sources all files, by name
 * @param constants what expressions in directives may name
 */
export function expandShader(
  name: string,
  sources: Readonly<Record<string, string>>,
  constants: Constants,
): string {
  const included = new Set<string>();

  const include = (file: string): string[] => {
    if (included.has(file)) return [];
    included.add(file);
    if (!(file in sources)) throw new Error(`no shader named ${file}`);
    return expand(sources[file].split("\n"));
  };

  const expand = (lines: readonly string[]): string[] => {
    const out: string[] = [];
    for (let i = 0; i < lines.length; i++) {
      const directive = /^\s*\/\/# (\w+)\s*(.*)$/.exec(lines[i]);
      if (!directive) {
        out.push(lines[i]);
        continue;
      }
      const [, word, rest] = directive;
      if (word === "include") {
        out.push(...include(rest.trim()));
        continue;
      }
      const { end, otherwise } = findEnd(lines, i);
      const body = lines.slice(i + 1, otherwise ?? end);
      if (word === "if") {
        if (evaluate(rest, constants) !== 0) out.push(...expand(body));
        else if (otherwise !== undefined) out.push(...expand(lines.slice(otherwise + 1, end)));
      } else {
        const [, variable, from, to] = /^(\w+) in (.+)\.\.(.+)$/.exec(rest) ?? [];
        if (word !== "for" || variable === undefined) throw new Error(`${name}: bad directive ${lines[i]}`);
        const inName = new RegExp(`_${variable}(?=_|\\b)`, "g");
        const asNumber = new RegExp(`\\$${variable}\\b`, "g");
        for (let n = evaluate(from, constants); n < evaluate(to, constants); n++) {
          const lines = body.map((line) => line.replace(inName, `_${n}`).replace(asNumber, String(n)));
          out.push(...expand(lines));
        }
      }
      i = end;
    }
    return out;
  };

  return include(name).join("\n");
}

/** Lines of the `else`, if any, and of the `end` that belong to the directive at `start`. */
function findEnd(lines: readonly string[], start: number): { end: number; otherwise?: number } {
  let depth = 0;
  let otherwise: number | undefined;
  for (let i = start + 1; i < lines.length; i++) {
    const word = /^\s*\/\/# (\w+)/.exec(lines[i])?.[1];
    if (word === "for" || word === "if") depth++;
    else if (word === "else" && depth === 0) otherwise = i;
    else if (word === "end" && depth-- === 0) return { end: i, otherwise };
  }
  throw new Error(`no end for ${lines[start]}`);
}

/** The value of an expression: integers, names, `+ - * / % == != < <= > >= && || !` and parentheses; truth is 1. */
export function evaluate(expression: string, constants: Constants): number {
  const tokens = expression.match(/\d+|\w+|[=!<>]=|&&|\|\||[-+*/%()<>!]/g) ?? [];
  let at = 0;

  const primary = (): number => {
    const token = tokens[at++];
    if (token === "(") {
      const value = binary(0);
      at++;
      return value;
    }
    if (token === "!") return primary() === 0 ? 1 : 0;
    if (token === "-") return -primary();
    if (/^\d+$/.test(token ?? "")) return Number(token);
    if (token !== undefined && token in constants) return constants[token];
    throw new Error(`${token} in the expression ${expression} is not known`);
  };

  const binary = (level: number): number => {
    if (level === LEVELS.length) return primary();
    let left = binary(level + 1);
    while (at < tokens.length && tokens[at] in LEVELS[level]) {
      const operate = LEVELS[level][tokens[at++]];
      left = operate(left, binary(level + 1));
    }
    return left;
  };

  const value = binary(0);
  if (at !== tokens.length) throw new Error(`cannot read the expression ${expression}`);
  return value;
}

/** Operators, loosest first. */
const LEVELS: readonly Record<string, (a: number, b: number) => number>[] = [
  { "||": (a, b) => Number(a !== 0 || b !== 0) },
  { "&&": (a, b) => Number(a !== 0 && b !== 0) },
  {
    "==": (a, b) => Number(a === b),
    "!=": (a, b) => Number(a !== b),
    "<": (a, b) => Number(a < b),
    "<=": (a, b) => Number(a <= b),
    ">": (a, b) => Number(a > b),
    ">=": (a, b) => Number(a >= b),
  },
  { "+": (a, b) => a + b, "-": (a, b) => a - b },
  { "*": (a, b) => a * b, "/": (a, b) => Math.floor(a / b), "%": (a, b) => a % b },
];

/** The values of the `override` declarations in a shader. */
export function setOverrides(code: string, constants: Constants): Record<string, number> {
  const names = [...code.matchAll(/^override (\w+)/gm)].map(([, name]) => name);
  return Object.fromEntries(names.filter((name) => name in constants).map((name) => [name, constants[name]]));
}
