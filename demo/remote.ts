/** Calls of functions in a worker: a message there, a message back. */
import { KvarnError, type KvarnErrorCode } from "../src/index.js";

/** Functions of one argument that a worker serves; arguments and results are cloned on the way. */
type Served<F> = { [Name in keyof F]: (argument: never) => unknown };

interface Request {
  readonly id: number;
  readonly name: string;
  readonly argument: unknown;
}

type Reply =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly message: string; readonly code: KvarnErrorCode | undefined };

/** Answers calls, in the worker. */
export function serve<F extends Served<F>>(functions: F): void {
  addEventListener("message", ({ data }: MessageEvent<Request>) => {
    const run: (argument: never) => unknown = functions[data.name as keyof F];
    const answer = async (): Promise<Reply> => {
      try {
        return { id: data.id, result: await run(data.argument as never) };
      } catch (error) {
        const code = error instanceof KvarnError ? error.code : undefined;
        return { id: data.id, message: (error as Error).message, code };
      }
    };
    void answer().then((reply) => postMessage(reply));
  });
}

/** A worker's functions, on the page. Errors arrive as what they were: a KvarnError with its code, or an Error. */
export class Remote<F extends Served<F>> {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, (reply: Reply) => void>();
  #calls = 0;

  constructor(worker: Worker) {
    this.#worker = worker;
    worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
      this.#waiting.get(data.id)?.(data);
      this.#waiting.delete(data.id);
    });
  }

  async call<Name extends keyof F & string>(
    name: Name,
    argument: Parameters<F[Name]>[0],
  ): Promise<Awaited<ReturnType<F[Name]>>> {
    const id = this.#calls++;
    this.#worker.postMessage({ id, name, argument } satisfies Request);
    const reply = await new Promise<Reply>((resolve) => this.#waiting.set(id, resolve));
    if ("result" in reply) return reply.result as Awaited<ReturnType<F[Name]>>;
    throw reply.code === undefined ? new Error(reply.message) : new KvarnError(reply.code, reply.message);
  }
}

/** Makes `run` go one at a time: of the arguments that come meanwhile, only the newest has its turn. */
export function newestOnly<T>(run: (argument: T) => Promise<void>): (argument: T) => void {
  let next: { argument: T } | undefined;
  let running = false;
  const work = async (): Promise<void> => {
    running = true;
    while (next) {
      const { argument } = next;
      next = undefined;
      await run(argument);
    }
    running = false;
  };
  return (argument) => {
    next = { argument };
    if (!running) void work();
  };
}
