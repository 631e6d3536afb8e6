//! Integers in decimal, by itoa; and those of a fixed width, eight digits at a time and without a
//! branch for each.

use super::line::Line;

/// An integer that a line can hold.
pub trait Integer: Copy {
    /// Appends it in decimal.
    fn push(self, out: &mut Line<'_>);
}

macro_rules! integer {
    ($($name:ty)*) => {$(
        impl Integer for $name {
            #[inline(always)]
            fn push(self, out: &mut Line<'_>) {
                let mut buffer = itoa::Buffer::new();
                out.extend_from_slice(buffer.format(self).as_bytes());
            }
        }
    )*};
}

integer!(u16 u32 u64 i32 i64);

/// Each octet in decimal with a dot after it, and the length of both. An IPv4 address takes 3.7 ns
/// with this table, and 13.6 ns with itoa.
pub static OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([b'.'; 4], 0); 256];
    let mut octet = 0;
    while octet < octets.len() {
        let [hundreds, tens, ones] = [octet / 100, octet / 10 % 10, octet % 10];
        let [hundreds, tens, ones] = [b'0' + hundreds as u8, b'0' + tens as u8, b'0' + ones as u8];
        octets[octet] = match octet {
            0..=9 => ([ones, b'.', b'.', b'.'], 2),
            10..=99 => ([tens, ones, b'.', b'.'], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        octet += 1;
    }
    octets
};

impl Integer for u8 {
    #[inline(always)]
    fn push(self, out: &mut Line<'_>) {
        let (text, len) = OCTETS[usize::from(self)];
        out.put(text, usize::from(len) - 1);
    }
}

/// The eight digits of a number below 10^8, the first one in the lowest byte.
///
/// The microseconds of a time, with leading zeros, take 3.6 ns with this function, and 11.6 ns with
/// itoa (1.0.19), whose digits have to be moved behind the zeros.
#[inline(always)]
pub fn eight_digits(value: u32) -> u64 {
    // Two numbers of four digits, then four of two, then eight of one: each is divided by the
    // factor in its lane, by a multiplication and a shift that are exact for all possible numbers.
    let value = u64::from(value);
    let fours = (value / 10_000) | ((value % 10_000) << 32);
    let hundreds = ((fours * 10_486) >> 20) & 0x7f_0000_007f;
    let twos = hundreds | ((fours - 100 * hundreds) << 16);
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    let ones = tens | ((twos - 10 * tens) << 8);
    ones | u64::from_ne_bytes([b'0'; 8])
}

/// A port, right-aligned in the first 5 of 8 bytes. This takes 4.1 ns; itoa and a move take 9.2 ns.
#[inline]
pub fn port(value: u16) -> [u8; 8] {
    let digits = eight_digits(value.into()) >> 24;
    let zeros = ((digits & 0x0f_0f0f_0f0f) | (1 << 32)).trailing_zeros() & !7;
    // Without this bit a '0' is a space.
    let bit = 0x10_1010_1010 & !(u64::MAX << zeros);
    (digits ^ bit).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    #[test]
    fn digits_are_written_as_by_the_standard_library() {
        let around = |value: u64| value.saturating_sub(2)..=value.saturating_add(2);
        let powers = (0..20).map(|power| 10_u64.pow(power));
        let steps = (0..1 << 20).map(|step: u64| step * 4099);
        let all = powers
            .chain([1 << 8, 1 << 16, 1 << 32, u64::MAX])
            .flat_map(around);
        for value in all.chain(steps).chain(0..100_000) {
            assert_eq!(rendered(|out| value.push(out)), value.to_string());
            if let Ok(value) = u32::try_from(value) {
                assert_eq!(rendered(|out| value.push(out)), value.to_string());
            }
            let low = value as u32 % 100_000_000;
            let digits = String::from_utf8(eight_digits(low).to_le_bytes().to_vec()).unwrap();
            assert_eq!(digits, format!("{low:08}"));
        }
        for value in [i64::MIN, -1, 0, 1, i64::MAX] {
            assert_eq!(rendered(|out| value.push(out)), value.to_string());
        }
        for value in 0..=255_u8 {
            assert_eq!(rendered(|out| value.push(out)), value.to_string());
        }
    }
}
