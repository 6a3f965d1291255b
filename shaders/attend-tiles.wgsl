// Attention of ROWS rows over what a layer has stored: records by attend-records, and at the same time, in
// workgroups of their own, exact tokens by attend-exact. Each workgroup rotates its own queries, which are few: a
// dispatch ahead of all others costs more. It leaves a partial result in a slot for attend-combine.

override D: u32;
override BLOCK: u32;
override GROUP: u32;
override KEY_BITS: u32;
override VALUE_BITS: u32;
override ROWS: u32;
override TILES: u32;
// Invocations a tile: GROUP / 8 for each of SLICES slices of the channels.
override LANES: u32;
override SLICES: u32;
override THREADS: u32;
// Channels that are staged at a time.
override CHUNK: u32;
// Staged rows: TILES * CHUNK, and at least 8 * THREADS.
override STAGED: u32;
// Tokens of a tile that an invocation weighs: 8 / SLICES.
override TOKENS: u32;
// Pairs of channels whose scales an invocation gets in a chunk.
override PAIRS: u32;
// Key and value rows that are fetched and gone through at a time.
override KEY_CODES: u32;
override KEYS_AHEAD: u32;
override VALUES_AHEAD: u32;
// Words of K for one channel.
override KEY_ROW: u32;
// Words that an invocation takes of a key row and of a value row.
override KEY_WORDS: u32;
override VALUE_WORDS: u32;
// Channels of a value row that an invocation takes, how many take a row, and how many shares of the tokens
// there are.
override CHANNELS: u32;
override VALUE_CODES: u32;
override COLUMNS: u32;
override SHARES: u32;
// Tokens of a share that lie in one tile, and in how many tiles it has some.
override SPAN: u32;
override SPANS: u32;
// Where a record's fields lie, and its size, in words.
override K_SCALE: u32;
override K_ZERO: u32;
override K_TOKEN: u32;
override V_CODES: u32;
override V_SCALE: u32;
override V_TOKEN: u32;
override V_ZERO: u32;
override RECORD: u32;
// Words of an exact value row that an invocation takes, how many share a row, and how many such teams there
// are.
override EXACT_WORDS: u32;
override EXACT_COLUMNS: u32;
override EXACT_TEAMS: u32;
// Tokens of a team whose values are fetched before their weights are known.
override EXACT_AHEAD: u32;

//# include attend-params

@group(0) @binding(1) var<storage, read> records: array<u32>;

var<workgroup> staged: array<Rows, STAGED>;
var<workgroup> sums: array<Rows, THREADS>;

// How attend-exact gets at them.
fn stagedAt(index: u32) -> Rows {
  return staged[index];
}

fn stage(index: u32, value: Rows) {
  staged[index] = value;
}

fn summedAt(index: u32) -> Rows {
  return sums[index];
}

fn setSummed(index: u32, value: Rows) {
  sums[index] = value;
}

fn queriesAt(channel: u32) -> Rows {
  return row[channel];
}

//# include attend-rows
//# include attend-queries
//# include attend-records
//# include attend-exact

@compute @workgroup_size(THREADS)
fn attend_tiles(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  takeQueries(group.x, group.y, thread);
  if (group.z < params.recordSplits) {
    attendRecords(group.x, group.y, group.z, thread);
  } else {
    attendExact(group.x, group.y, group.z - params.recordSplits, thread);
  }
}
