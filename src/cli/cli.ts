/** The `kvarn` command: finds the subcommand and turns errors into messages and exit statuses. */
import { KvarnError } from "../errors.js";
import { type Command, InputError, type Streams, UsageError } from "./command.js";
import { conformanceCommand } from "./conformance.js";
import { doctorCommand } from "./doctor.js";
import { reportCommand } from "./report.js";
import { sizeCommand } from "./size.js";
import { packageVersion } from "./version.js";

const commands: readonly Command[] = [reportCommand, sizeCommand, doctorCommand, conformanceCommand];

const usage = `Usage: kvarn COMMAND [options]

Compresses the KV cache of language models to 2 to 8 bits a value.

Commands:
${commands.map(({ name, summary }) => `  ${name.padEnd(12)}${summary}\n`).join("")}
Options:
  -h, --help    this text; after a command: what it takes
  --version     the version of this package
`;

/**
 * Runs a command line.
 * @param args without the program's name
 * @returns the exit status: 0, 1 when something went wrong, 2 when the command line is wrong
 */
export async function runCli(args: readonly string[], streams: Streams): Promise<number> {
  const [first, ...rest] = args;
  const command = commands.find(({ name }) => name === first);
  try {
    if (!command) return runWithoutCommand(first, streams);
    if (wantsHelp(rest)) {
      streams.stdout.write(command.help);
      return 0;
    }
    return await command.run(rest, streams);
  } catch (error) {
    return explain(error, command, streams);
  }
}

function runWithoutCommand(first: string | undefined, { stdout }: Streams): number {
  if (first === "--version") {
    stdout.write(`${packageVersion()}\n`);
    return 0;
  }
  if (first === "-h" || first === "--help" || first === "help") {
    stdout.write(usage);
    return 0;
  }
  if (first === undefined) throw new UsageError("a command is missing");
  throw new UsageError(`unknown ${first.startsWith("-") ? "option" : "command"} '${first}'`);
}

/** Whether help is asked for before any `--`, behind which everything is a file. */
function wantsHelp(args: readonly string[]): boolean {
  const end = args.indexOf("--");
  return args.slice(0, end < 0 ? undefined : end).some((arg) => arg === "-h" || arg === "--help");
}

function explain(error: unknown, command: Command | undefined, { stderr }: Streams): number {
  if (error instanceof UsageError) {
    stderr.write(`kvarn: ${error.message}\n\n${command ? shortUsage(command) : usage}`);
    return 2;
  }
  if (error instanceof KvarnError || error instanceof InputError) {
    stderr.write(`kvarn: ${error.message}\n`);
    return 1;
  }
  throw error; // A mistake of ours: with its stack.
}

/** The first line of a command's help, so that the error above it stays in sight. */
function shortUsage({ name, help }: Command): string {
  return `${help.split("\n", 1)[0]}\nkvarn ${name} --help says more.\n`;
}
