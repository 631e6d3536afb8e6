//! Estimates the number of different values.

/// Up to this many values, their hashes are kept. With more, a sketch takes their place.
const FEW: usize = 32;

/// Registers of a sketch, which take as much memory as [`FEW`] hashes. The standard error is
/// 1.04 / sqrt(256), 6.5 %.
const REGISTERS: usize = 256;

/// Counts different values by their hashes, in at most 256 bytes: exactly up to 32, and beyond that
/// approximately.
#[derive(Clone, Debug)]
pub enum Distinct {
    /// All hashes.
    Few(Vec<u64>),
    /// The registers of a HyperLogLog sketch.
    Many(Box<[u8; REGISTERS]>),
}

impl Default for Distinct {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Distinct {
    /// Adds a value by its hash.
    pub fn add(&mut self, hash: u64) {
        match self {
            Self::Few(hashes) if hashes.contains(&hash) => {}
            Self::Few(hashes) if hashes.len() < FEW => hashes.push(hash),
            Self::Few(hashes) => {
                let mut registers = Box::new([0; REGISTERS]);
                for hash in hashes.iter().chain([&hash]) {
                    note(&mut *registers, *hash);
                }
                *self = Self::Many(registers);
            }
            Self::Many(registers) => note(&mut **registers, hash),
        }
    }

    /// How many different values were added.
    pub fn count(&self) -> u64 {
        match self {
            Self::Few(hashes) => hashes.len() as u64,
            Self::Many(registers) => estimate(&**registers),
        }
    }
}

/// Notes a hash in a sketch, whose number of registers is a power of two: the low bits choose the
/// register, which keeps the largest number of trailing zeros of the rest, plus 1.
fn note(registers: &mut [u8], hash: u64) {
    let bits = registers.len().ilog2();
    let rest = hash >> bits | 1 << (u64::BITS - bits);
    let at = hash as usize & (registers.len() - 1);
    registers[at] = registers[at].max(rest.trailing_zeros() as u8 + 1);
}

/// The number of different values that a HyperLogLog sketch has seen, with a standard error of 1.04
/// divided by the square root of its number of registers. The programs of syn-count have 4,096
/// registers, so the error is 1.6 %.
///
/// The estimator is that of Ertl (2017, arXiv:1702.01284), which needs no tables for small numbers
/// as the original one does. The crates for this (hyperloglogplus, cardinality-estimator) compute
/// the hashes themselves, and do not accept registers that are already filled.
pub fn estimate(registers: &[u8]) -> u64 {
    // The most trailing zeros that the rest of a hash can have.
    let most = (u64::BITS - registers.len().checked_ilog2().unwrap_or(0)) as usize;
    let mut counts = [0.0; u64::BITS as usize + 2];
    for register in registers {
        counts[usize::from(*register).min(most + 1)] += 1.0;
    }
    let all = registers.len() as f64;
    let mut z = all * tau(1.0 - counts[most + 1] / all);
    for count in counts[1..=most].iter().rev() {
        z = 0.5 * (z + count);
    }
    z += all * sigma(counts[0] / all);
    (all * all / (2.0 * std::f64::consts::LN_2 * z)).round() as u64
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x).powi(2) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: hashes that are as good as random.
    fn hash(number: u64) -> u64 {
        let mut hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ hash >> 31
    }

    #[test]
    fn numbers_of_values_are_estimated_within_four_standard_errors() {
        let mut registers = vec![0_u8; 4096];
        let mut distinct = Distinct::default();
        assert_eq!((estimate(&registers), distinct.count()), (0, 0));
        let mut number = 0;
        for wanted in [
            1, 2, 10, 32, 33, 100, 1000, 5000, 12_000, 30_000, 300_000, 1_000_000,
        ] {
            while number < wanted {
                let hash = hash(number + 1);
                note(&mut registers, hash);
                // A value that is added twice counts once.
                (0..2).for_each(|_| distinct.add(hash));
                number += 1;
            }
            for (found, most) in [(estimate(&registers), 0.065), (distinct.count(), 0.26)] {
                let error = (found as f64 / wanted as f64 - 1.0).abs();
                assert!(error < most, "{wanted}: {found}");
            }
            if wanted <= FEW as u64 {
                assert_eq!(distinct.count(), wanted);
            }
        }
    }
}
