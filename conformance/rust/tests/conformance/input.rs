//! The inputs, drawn from seeds.
use crate::data::ExactTokens;

struct Generator(u32);

impl Generator {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    fn draw(&mut self) -> f32 {
        let sum: u32 = (0..4).map(|_| self.next() >> 22).sum();
        (sum as f32 - 2046.0) / 512.0
    }
}

pub fn draws(count: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut generator = Generator(seed);
    (0..count).map(|_| generator.draw() * scale).collect()
}

/// K and V of exact tokens.
pub fn exact(tokens: &ExactTokens, width: usize) -> (Vec<f32>, Vec<f32>) {
    let side = |seed| draws(tokens.tokens * width, seed, 1.0);
    (side(tokens.key_seed), side(tokens.value_seed))
}

/// `[tokens, heads, channels]` of a kind, for one side.
pub fn tensor(kind: &str, side: &str, seed: u32, tokens: usize, heads: usize, channels: usize) -> Vec<f32> {
    let mut generator = Generator(seed);
    let elements = (0..tokens * heads * channels).map(|i| {
        let (t, h, d) = (i / (heads * channels), i / channels % heads, i % channels);
        element(kind, side == "key", generator.draw(), t, h, d)
    });
    elements.collect()
}

fn element(kind: &str, is_key: bool, x: f32, t: usize, h: usize, d: usize) -> f32 {
    let at = |holds: bool, factor: f32| if holds { factor } else { 1.0 };
    match (kind, is_key) {
        ("gauss", _) => x,
        ("outlier", true) => x * at((7 * d + 3 * h).is_multiple_of(25), 16.0) * at(t % 29 == 5, 4.0),
        ("outlier", false) if t % 17 == 3 => 8.0 * x,
        ("outlier", false) => x * at(t % 5 == 1, 0.25),
        ("hot", true) if t % 37 == 11 => 8.0 * x * at((5 * d + h).is_multiple_of(31), 32.0),
        ("hot", true) => x * at((5 * d + h).is_multiple_of(31), 32.0) * at(t % 7 == 2, 0.125),
        ("hot", false) => x * at(t % 23 == 4, 16.0) * at((3 * d + h) % 29 == 1, 8.0),
        ("lowstd", true) => x / 64.0,
        ("lowstd", false) => x / 256.0,
        ("constant", _) => [0.0, 1.25, x][t % 3],
        ("offset", true) => (x + 256.0) * [1.0, 2.0, 4.0, 8.0, 16.0][3 * t % 5],
        ("offset", false) => (x + 256.0) * [1.0, 2.0, 4.0, 8.0, 16.0][3 * d % 5],
        _ => panic!("no kind {kind}"),
    }
}

/// A tile for rounding.
pub fn grid(rows: usize, columns: usize, bits: u32, seed: u32) -> Vec<f64> {
    let mut generator = Generator(seed);
    let levels = (1u32 << bits) - 1;
    let elements = (0..rows * columns).map(|i| {
        let (r, c, u) = (i / columns, i % columns, generator.next());
        let quarters = match c {
            0 => 0,
            1 => 4 * levels,
            _ => (u >> 16) % (4 * levels + 1),
        };
        let base = (r % 7) as f64 - 3.0;
        if r % 16 == 5 {
            base
        } else {
            base + f64::from(quarters) / 4.0 * 2f64.powi((r % 5) as i32 - 2)
        }
    });
    elements.collect()
}
