//! The Walsh-Hadamard rotation. It is its own inverse.
use libm::sqrt;

/// Head sizes that the method rotates: up to 512, in whole sixteens.
pub fn has_rotation(head_dim: usize) -> bool {
    head_dim.is_multiple_of(16) && (16..=512).contains(&head_dim)
}

/// Rotates each row of `head_dim` elements in place, in blocks of the largest power of two that divides it.
pub fn rotate(x: &mut [f64], head_dim: usize) {
    let block = 1 << head_dim.trailing_zeros();
    let norm = sqrt(block as f64);
    for row in x.chunks_exact_mut(block) {
        butterflies(row);
        row.iter_mut().for_each(|element| *element /= norm);
    }
}

/// Multiplies a row by the matrix of +1 and -1: its halves, and then their sum and difference.
fn butterflies(row: &mut [f64]) {
    if row.len() == 1 {
        return;
    }
    let (first, second) = row.split_at_mut(row.len() / 2);
    butterflies(first);
    butterflies(second);
    for (a, b) in first.iter_mut().zip(second) {
        (*a, *b) = (*a + *b, *a - *b);
    }
}
