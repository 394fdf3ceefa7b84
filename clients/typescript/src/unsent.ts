/** Requests that are on no connection: in a line for each key, and those for which the gateway had no room until there
 * may be some. */

import type { Job } from "./job.js";

const LEAST_REST_MS = 5;

export class Unsent {
  /** By key: what waits for one is no matter of another one. */
  private readonly lines = new Map<string, Set<Job>>();
  /** When there may be room for each. */
  private readonly resting = new Map<Job, number>();
  private timer: NodeJS.Timeout | undefined;

  /** `rested` gets those for which there may be room by now. */
  constructor(private readonly rested: (jobs: Job[]) => void) {}

  get size(): number {
    let size = this.resting.size;
    for (const line of this.lines.values()) size += line.size;
    return size;
  }

  get slots(): Iterable<string> {
    return this.lines.keys();
  }

  get all(): Job[] {
    return [...this.lines.values(), this.resting.keys()].flatMap((jobs) => [...jobs]);
  }

  line(slot: string): Set<Job> {
    let found = this.lines.get(slot);
    if (!found) this.lines.set(slot, (found = new Set()));
    return found;
  }

  /** Put them before the others of their lines. */
  addFirst(jobs: Job[]): void {
    for (const slot of new Set(jobs.map((job) => job.slot))) {
      const line = this.line(slot);
      const others = [...line];
      line.clear();
      for (const job of jobs) if (!job.done && job.slot === slot) line.add(job);
      for (const job of others) line.add(job);
    }
  }

  /** Let one rest for so many milliseconds. */
  rest(job: Job, ms: number): void {
    this.resting.set(job, performance.now() + ms);
    if (this.timer === undefined) this.look();
  }

  delete(job: Job): void {
    this.lines.get(job.slot)?.delete(job);
    this.resting.delete(job);
  }

  /** Let none go on any more that rests. */
  end(): void {
    clearTimeout(this.timer);
  }

  /** Set the one timer for all. */
  private look(): void {
    this.timer = undefined;
    if (this.resting.size === 0) return;
    let first = Infinity;
    for (const when of this.resting.values()) first = Math.min(first, when);
    this.timer = setTimeout(this.due, Math.max(first - performance.now(), LEAST_REST_MS));
  }

  private readonly due = (): void => {
    const now = performance.now();
    const due = [...this.resting].flatMap(([job, when]) => (when <= now ? [job] : []));
    for (const job of due) this.resting.delete(job);
    this.look();
    this.rested(due);
  };
}
