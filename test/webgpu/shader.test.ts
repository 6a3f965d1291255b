import { describe, expect, it } from "vitest";
import { evaluate, expandShader, setOverrides } from "../../src/webgpu/shader.js";

const expand = (source: string, constants = {}, others = {}) =>
  expandShader("main", { main: source, ...others }, constants);

describe("expressions in shaders", () => {
  it.each([
    ["12", 12],
    ["D / 16", 8],
    ["7 / 2", 3],
    ["7 % 4", 3],
    ["1 + 2 * 3", 7],
    ["(1 + 2) * 3", 9],
    ["10 - 3 - 2", 5],
    ["-3 + 5", 2],
    ["D == 128", 1],
    ["D != 128", 0],
    ["!KEYS", 1],
    ["!(D < 3)", 1],
    ["D >= 128 && D <= 128", 1],
    ["KEYS || D > 127", 1],
    ["1 == 2 || 1 == 1 && 0 == 1", 0],
  ])("%s is %i", (expression, value) => {
    expect(evaluate(expression, { D: 128, KEYS: 0 })).toBe(value);
  });

  it.each(["WHAT", "1 +", "1 2", "", "(1"])("refuses %j", (expression) => {
    expect(() => evaluate(expression, {})).toThrow(/not known|cannot read/);
  });
});

describe("expansion of shaders", () => {
  it("leaves what is no directive as it is", () => {
    expect(expand("a\n  // for x in 0..2\nb")).toBe("a\n  // for x in 0..2\nb");
  });

  it("repeats lines, with numbers in names and by themselves", () => {
    const source = "//# for c in 1..N + 1\nlet x_c = y_c_z + f32($c) + x_cd + abc;\n//# end";
    expect(expand(source, { N: 2 })).toBe(
      "let x_1 = y_1_z + f32(1) + x_cd + abc;\nlet x_2 = y_2_z + f32(2) + x_cd + abc;",
    );
    expect(expand(source, { N: 0 })).toBe("");
  });

  it("repeats in repetitions, whose bounds may depend on the outer number", () => {
    const source = "//# for a in 0..3\n//# for b in $a..2\nx_a_b\n//# end\n//# end";
    expect(expand(source)).toBe("x_0_0\nx_0_1\nx_1_1");
  });

  it("keeps one side of a condition", () => {
    const source = "//# if A == 1\none\n//# if B\nboth\n//# end\n//# else\nother\n//# end";
    expect(expand(source, { A: 1, B: 1 })).toBe("one\nboth");
    expect(expand(source, { A: 1, B: 0 })).toBe("one");
    expect(expand(source, { A: 0, B: 1 })).toBe("other");
  });

  it("includes each file once", () => {
    const others = { half: "h", twice: "//# include half\nt" };
    expect(expand("//# include half\n//# include twice\nm", {}, others)).toBe("h\nt\nm");
    expect(() => expand("//# include none")).toThrow("no shader named none");
  });

  it("names what is wrong with directives", () => {
    expect(() => expand("//# if 1\nx")).toThrow("no end");
    expect(() => expand("//# for x of 3\nx\n//# end")).toThrow("bad directive");
    expect(() => expand("//# while 1\n//# end")).toThrow();
  });
});

it("overrides are those that a shader declares", () => {
  const code = "override D: u32;\noverride LINES: u32 = D + 1;\nconst X = 1;";
  expect(setOverrides(code, { D: 64, BITS: 4 })).toEqual({ D: 64 });
});
