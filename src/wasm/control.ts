/** The words that threads share, as `assembly/threads.ts` has them: indices of 32-bit words from the control address on. */

/** Counts what idle threads wait for: tasks, and the end. */
export const CALLS = 0;
/** 1: threads are to return. */
export const QUIT = 1;
/** Number behind the last task given. */
export const LIMIT = 2;
/** 1: a thread has failed. */
export const FAILED = 3;
/** How many tasks are done. */
export const DONE = 32;
/** Where the calls of a task begin and end, two words each: a ring, of which tasks not done are a part. */
export const RING = 48;
export const RING_TASKS = 1024;
/** All of them. */
export const CONTROL_WORDS = RING + 2 * RING_TASKS;
