// The builds with threads: all kernels, and tasks for several instances on one memory.
//
// A task is a list of kernel calls that follow one another; tasks that are there at the same time do not depend on each
// other. Whoever is free takes the next: the thread that gives them and those that serve do not differ in that. Tasks are
// counted from the first on, and their numbers wrap around.

import { attendExact, attendRecord, attendRecordF32 } from "./attend";
import { clearRows } from "./combine";
import { writeTokens } from "./exact";
import { encodeKeys, encodeNewKeys, encodeNewValues, encodeValues } from "./record";
import { refineKeys, refineValues } from "./refine";
import { hideTokens, setMask } from "./softmax";

export * from "./index";
export { combineParts } from "./combine";

// What threads share, 32-bit words at an address that all are told. Those that several write have lines of their own.

// Counts what idle threads wait for: tasks, and the end.
const CALLS: usize = 0;
// 1: threads are to return.
const QUIT: usize = 4;
// The number behind the last task given.
const LIMIT: usize = 8;
// The next task that nobody has taken.
const NEXT: usize = 64;
// How many tasks are done.
const DONE: usize = 128;
// Where the calls of a task begin and end, a pair of addresses each: a ring, of which tasks not done are a part.
const RING: usize = 192;
const RING_TASKS = 1024;

// How often an idle thread looks before it sleeps: waking one takes longer than many a job.
const LOOKS = 4_000;

// Takes and runs tasks until none is left.
export function work(control: usize): void {
  for (;;) {
    const task = atomic.load<i32>(control, NEXT);
    if (atomic.load<i32>(control, LIMIT) - task <= 0) return;
    if (atomic.cmpxchg<i32>(control, task, task + 1, NEXT) != task) continue;
    const entry = control + ((<usize>(task & (RING_TASKS - 1))) << 3);
    run(load<usize>(entry, RING), load<usize>(entry, RING + 4));
    const done = atomic.add<i32>(control, 1, DONE) + 1;
    if (done == atomic.load<i32>(control, LIMIT)) atomic.notify(control + DONE, 1);
  }
}

// What a thread does all its life.
export function serve(control: usize): void {
  for (;;) {
    const seen = atomic.load<i32>(control, CALLS);
    if (atomic.load<i32>(control, QUIT)) return;
    work(control);
    let looks = LOOKS;
    while (looks > 0 && atomic.load<i32>(control, CALLS) == seen) looks--;
    if (looks == 0) atomic.wait<i32>(control + CALLS, seen, -1);
  }
}

// Kernels by their numbers; the sizes of calls in words, the number included.
const SET_MASK = 0;
const ATTEND_RECORD = 1;
const ATTEND_RECORD_F32 = 2;
const ATTEND_EXACT = 3;
const CLEAR_ROWS = 4;
const ENCODE_KEYS = 5;
const ENCODE_VALUES = 6;
const WRITE_TOKENS = 7;
const ENCODE_NEW_KEYS = 8;
const ENCODE_NEW_VALUES = 9;
const HIDE_TOKENS = 10;
const REFINE_KEYS = 11;
const REFINE_VALUES = 12;

@inline
function arg(call: usize, index: usize): i32 {
  return load<i32>(call + (index << 2));
}

function run(call: usize, end: usize): void {
  while (call < end) {
    switch (load<i32>(call)) {
      case SET_MASK: {
        setMask(arg(call, 1), arg(call, 2), arg(call, 3), load<f32>(call, 16));
        call += 5 << 2;
        break;
      }
      case ATTEND_RECORD: {
        attendRecord(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
          arg(call, 11),
          arg(call, 12),
          arg(call, 13),
          arg(call, 14),
          arg(call, 15),
          arg(call, 16),
          arg(call, 17),
        );
        call += 18 << 2;
        break;
      }
      case ATTEND_RECORD_F32: {
        attendRecordF32(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
          arg(call, 11),
          arg(call, 12),
          arg(call, 13),
          arg(call, 14),
          arg(call, 15),
          arg(call, 16),
          arg(call, 17),
        );
        call += 18 << 2;
        break;
      }
      case ATTEND_EXACT: {
        attendExact(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
        );
        call += 11 << 2;
        break;
      }
      case CLEAR_ROWS: {
        clearRows(arg(call, 1), arg(call, 2), arg(call, 3), arg(call, 4));
        call += 5 << 2;
        break;
      }
      case ENCODE_KEYS: {
        encodeKeys(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
        );
        call += 11 << 2;
        break;
      }
      case ENCODE_VALUES: {
        encodeValues(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
        );
        call += 11 << 2;
        break;
      }
      case WRITE_TOKENS: {
        const half = arg(call, 2) != 0;
        const bad = writeTokens(
          arg(call, 1),
          half,
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
        );
        // What it returns goes where whoever gave the job finds it.
        store<i32>(call, bad, 8 << 2);
        call += 9 << 2;
        break;
      }
      case ENCODE_NEW_KEYS: {
        const finite = encodeNewKeys(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
        );
        store<i32>(call, i32(finite), 11 << 2);
        call += 12 << 2;
        break;
      }
      case ENCODE_NEW_VALUES: {
        const finite = encodeNewValues(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
        );
        store<i32>(call, i32(finite), 11 << 2);
        call += 12 << 2;
        break;
      }
      case HIDE_TOKENS: {
        hideTokens(arg(call, 1), arg(call, 2), arg(call, 3), arg(call, 4));
        call += 5 << 2;
        break;
      }
      case REFINE_KEYS: {
        refineKeys(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
          arg(call, 11),
        );
        call += 12 << 2;
        break;
      }
      case REFINE_VALUES: {
        refineValues(
          arg(call, 1),
          arg(call, 2),
          arg(call, 3),
          arg(call, 4),
          arg(call, 5),
          arg(call, 6),
          arg(call, 7),
          arg(call, 8),
          arg(call, 9),
          arg(call, 10),
        );
        call += 11 << 2;
        break;
      }
      default:
        unreachable();
    }
  }
}
