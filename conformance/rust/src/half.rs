//! IEEE binary16 as bits.
use libm::rint;

/// The largest that is finite.
pub const HALF_MAX: f64 = 65_504.0;

/// 2 to the power of an integer within the range of normal f64.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// To the nearest, ties to even, with no stop at f32 on the way. What is too large becomes infinite.
pub fn to_half(x: f64) -> u16 {
    let sign = ((x.to_bits() >> 48) & 0x8000) as u16;
    if x.is_nan() {
        return sign | 0x7e00;
    }
    let exponent = (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(-14);
    if exponent > 15 {
        return sign | 0x7c00;
    }
    // The bit that binary16 leaves out (1024 of a normal number) counts as one step of the exponent; so does a
    // carry of the rounding, up to infinity.
    let steps = rint(x.abs() / power_of_two(exponent - 10)) as u16;
    sign | ((((exponent + 14) as u16) << 10) + steps)
}

/// Exact.
pub fn from_half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from((bits >> 10) & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * power_of_two(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * power_of_two(exponent - 25),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// Binary16, or refused where that is not finite.
pub fn to_finite_half(x: f64) -> Result<u16, crate::error::Error> {
    let bits = to_half(x);
    if bits & 0x7c00 == 0x7c00 {
        Err(crate::error::Error::NotFinite)
    } else {
        Ok(bits)
    }
}
