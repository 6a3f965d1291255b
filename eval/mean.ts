export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The mean magnitude of what differs. */
export function meanDifference(actual: Float32Array, expected: Float32Array): number {
  return expected.reduce((sum, value, i) => sum + Math.abs(actual[i] - value), 0) / expected.length;
}
