//! How many different sources there were, from what the kernel kept of their hashes.

/// Bits of a hash that choose a register.
const REGISTER_BITS: u32 = 12;

/// The most zeros that the rest of a hash can begin with.
const MOST_ZEROS: usize = 64 - REGISTER_BITS as usize;

/// The number of different values that a HyperLogLog sketch of 4,096 registers has seen: its
/// standard error is 1.04 / sqrt(4096), 1.6 %.
///
/// The estimator is that of Ertl (2017, arXiv:1702.01284), which needs no tables for small numbers
/// as the first one does. The crates for this (hyperloglogplus, cardinality-estimator) hash by
/// themselves and take no registers that somebody else has filled.
pub fn estimate(registers: &[u8]) -> u64 {
    let mut counts = [0.0; MOST_ZEROS + 2];
    for register in registers {
        counts[usize::from(*register).min(MOST_ZEROS + 1)] += 1.0;
    }
    let all = registers.len() as f64;
    let mut z = all * tau(1.0 - counts[MOST_ZEROS + 1] / all);
    for count in counts[1..=MOST_ZEROS].iter().rev() {
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
    fn numbers_of_sources_are_estimated_within_four_standard_errors() {
        let mut registers = vec![0_u8; 1 << REGISTER_BITS];
        assert_eq!(estimate(&registers), 0);
        let mut number = 0;
        for wanted in [
            1, 2, 10, 100, 1000, 5000, 12_000, 30_000, 300_000, 1_000_000,
        ] {
            while number < wanted {
                let hash = hash(number + 1);
                let rest = hash >> REGISTER_BITS | 1 << MOST_ZEROS;
                let register = &mut registers[(hash & 0xfff) as usize];
                *register = (*register).max(rest.trailing_zeros() as u8 + 1);
                number += 1;
            }
            let found = estimate(&registers) as f64;
            let error = (found / wanted as f64 - 1.0).abs();
            assert!(error < 0.065, "{wanted}: {found}");
        }
    }
}
