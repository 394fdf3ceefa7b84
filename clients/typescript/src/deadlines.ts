/** One timer for the deadlines of all requests: few are ever reached, and a timer for each would be garbage of each. */

import { GRACE_MS, type Job } from "./job.js";

const LEAST_REST_MS = 5;
/** Between two looks lies so many times as long as a look takes. */
const REST = 20;

export class Deadlines {
  private timer: NodeJS.Timeout | undefined;
  private at = Infinity;

  /** `jobs`: those that are not answered. */
  constructor(private readonly jobs: () => Job[]) {}

  /** See to it that this one fails when it is late. */
  watch({ deadline }: Job): void {
    if (deadline < this.at) this.look(deadline, performance.now());
  }

  end(): void {
    clearTimeout(this.timer);
  }

  private look(deadline: number, now: number): void {
    clearTimeout(this.timer);
    this.at = deadline;
    this.timer = setTimeout(this.due, deadline + GRACE_MS - now);
  }

  private readonly due = (): void => {
    const now = performance.now();
    const open = this.jobs().filter((job) => !job.done);
    for (const job of open) if (job.deadline + GRACE_MS <= now) job.late();
    const first = open.reduce((least, job) => (job.done ? least : Math.min(least, job.deadline)), Infinity);
    const done = performance.now();
    const rest = Math.max(LEAST_REST_MS, (done - now) * REST);
    this.at = Infinity;
    if (first < Infinity) this.look(Math.max(first, done + rest - GRACE_MS), done);
  };
}
