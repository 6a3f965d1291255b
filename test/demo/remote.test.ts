import { describe, expect, it, vi } from "vitest";
import { newestOnly } from "../../demo/remote.js";

describe("newestOnly", () => {
  it("runs one at a time, and of those that came meanwhile the newest", async () => {
    const begun: number[] = [];
    const ends: (() => void)[] = [];
    const run = newestOnly(async (argument: number) => {
      begun.push(argument);
      await new Promise<void>((resolve) => ends.push(resolve));
    });
    for (let argument = 0; argument < 4; argument++) run(argument);
    expect(begun).toEqual([0]);
    ends[0]();
    await vi.waitFor(() => expect(begun).toEqual([0, 3]));
    ends[1]();
    await new Promise((resolve) => setTimeout(resolve));
    run(4);
    expect(begun).toEqual([0, 3, 4]);
  });
});
