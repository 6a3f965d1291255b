/** Peers that did not take part, and why. */
import { AbsentError, type Peer, reasonOf } from "./peer.js";

/** What did not run for one reason. */
interface Refusal {
  readonly backend: string;
  readonly reason: string;
  readonly variants: Set<string>;
  readonly cases: Set<string>;
}

export class Refusals {
  readonly #refusals = new Map<string, Refusal>();

  /** @param of the case */
  add({ backend, variant }: Pick<Peer, "backend" | "variant">, of: string, error: unknown): void {
    const reason = reasonOf(error);
    const key = `${backend}: ${reason}`;
    const refusal = this.#refusals.get(key) ?? { backend, reason, variants: new Set(), cases: new Set() };
    this.#refusals.set(key, refusal);
    // What is absent is so in all its variants from every case.
    if (error instanceof AbsentError) return;
    refusal.variants.add(variant);
    refusal.cases.add(of);
  }

  /** One line for each peer and reason. */
  list(): string[] {
    return [...this.#refusals.values()].map(({ backend, reason, variants, cases }) => {
      if (cases.size === 0) return `${backend}: ${reason}`;
      return `${backend} (${[...variants].join(", ")}): ${reason} (${[...cases].join("; ")})`;
    });
  }
}
