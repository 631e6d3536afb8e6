//! Values of options: times, rates, sizes, names.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::SignedDuration;

use crate::failure::Refusal;
use crate::host::lookup;

/// The longest time that is accepted: a century, so that no clock overflows.
const MAX_SECONDS: f64 = 100.0 * 366.0 * 86_400.0;

/// Shorter intervals are of no use to a person, and keep the machine busy.
const MIN_SECONDS: f64 = 0.001;

/// An address and port to listen on.
///
/// # Errors
/// It is not an address and a port.
pub fn listen(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse().map_err(|_| {
        Refusal::with_hint(
            "not an address and a port",
            "127.0.0.1:9817, [::1]:9817, or 0.0.0.0:9817 for all addresses; names are not looked up",
        )
    })
}

/// A time: seconds, or a number with its unit.
///
/// # Errors
/// It is not a time, or out of range.
pub fn time(text: &str) -> Result<Duration, Refusal> {
    let text = text.trim();
    let seconds = match text.parse::<f64>() {
        Ok(seconds) => seconds,
        // jiff would also accept ISO 8601 (PT2H), which begins with a letter.
        Err(_) if text.starts_with(|c: char| c.is_ascii_digit()) => text
            .parse::<SignedDuration>()
            .map_err(|_| not_a_time(text))?
            .as_secs_f64(),
        Err(_) => return Err(not_a_time(text)),
    };
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
        return Err("it must be between 1ms and 100 years".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A part of a whole, in percent.
///
/// # Errors
/// It is not a number, or out of range.
pub fn percent(text: &str) -> Result<f64, Refusal> {
    let number = text.trim().trim_end_matches('%').parse::<f64>();
    match number {
        Ok(number) if (1.0..=100.0).contains(&number) => Ok(number),
        _ => Err(format!("'{text}' is not a percentage from 1 to 100").into()),
    }
}

fn not_a_time(text: &str) -> Refusal {
    format!("'{text}' is not a time such as 90, 500ms, 10m or 2h").into()
}

/// The size of a file as with tcpdump: millions of bytes, or with k, m or g KiB, MiB or GiB.
///
/// # Errors
/// It is not a whole number above 0, or out of range.
pub fn file_size(text: &str) -> Result<u64, Refusal> {
    bytes(text, 1_000_000)
        .filter(|size| *size > 0)
        .ok_or_else(|| {
            format!("'{text}' is not a size such as 100 (million bytes), 500k, 64m or 2g").into()
        })
}

/// A number of bytes with k, m or g for KiB, MiB or GiB, or in the unit that applies without them.
fn bytes(text: &str, unit: u64) -> Option<u64> {
    let (number, unit) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, unit),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// SYNs a second, with k, M or G for thousands, millions or billions.
///
/// # Errors
/// It is not a number above 0.
pub fn rate(text: &str) -> Result<f64, Refusal> {
    per_second(text, "SYNs")
}

/// A reason as it is shown. The kernel's own name for it, such as `SKB_DROP_REASON_NO_SOCKET`, is
/// accepted too.
///
/// # Errors
/// None. Whether the kernel knows the reason is checked later.
pub fn reason(text: &str) -> Result<String, Infallible> {
    let name = text.trim().to_ascii_lowercase();
    let prefixes = ["skb_drop_reason_", "sk_rst_reason_"];
    let short = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    Ok(short.map_or(name.clone(), str::to_owned))
}

/// Events a second, at least one.
pub fn max_rate(text: &str) -> Result<u64, Refusal> {
    let rate = per_second(text, "events")?;
    if rate < 1.0 {
        return Err(format!("'{text}' is less than one event a second").into());
    }
    Ok(rate as u64)
}

fn per_second(text: &str, what: &str) -> Result<f64, Refusal> {
    let (number, factor) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'm' | 'M')) => (&text[..at], 1e6),
        Some((at, 'g' | 'G')) => (&text[..at], 1e9),
        _ => (text, 1.0),
    };
    match number.parse::<f64>().map(|value| value * factor) {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(
            format!("'{text}' is not a rate above 0, in {what} a second: 200, 1.5k or 1M").into(),
        ),
    }
}

/// The size of an event buffer: bytes, or with k, m or g KiB, MiB or GiB.
///
/// # Errors
/// The kernel has no buffer of this size.
pub fn buffer_size(text: &str) -> Result<u32, Refusal> {
    // Both kinds of buffer are made of whole pages; 1 GiB is more than any reader catches up on.
    const ALLOWED: std::ops::RangeInclusive<u32> = 4096..=1 << 30;
    match bytes(text, 1).map(u32::try_from) {
        Some(Ok(size)) if size.is_power_of_two() && ALLOWED.contains(&size) => Ok(size),
        _ => Err(
            format!("'{text}' is not a power of two from 4096 to 1073741824, such as 16m").into(),
        ),
    }
}

/// The longest name of a thread, in bytes (`TASK_COMM_LEN` without its NUL).
const COMM_MAX: usize = 15;

/// The name of a process or thread, in bytes, as it is or as the text output shows it:
/// `billing\x20worker`.
///
/// # Errors
/// No process can have this name.
pub fn comm(text: &str) -> Result<Vec<u8>, Refusal> {
    let bytes = unescape(text.trim_start().as_bytes()).ok_or_else(|| {
        Refusal::from(format!(
            "'{text}' has a \\ that is not followed by \\ or xNN"
        ))
    })?;
    if bytes.is_empty() || bytes.len() > COMM_MAX {
        return Err(format!(
            "a process name has 1 to {COMM_MAX} bytes: the kernel cuts longer ones"
        )
        .into());
    }
    Ok(bytes)
}

/// The reverse of [`push_text`](crate::output::escape::push_text).
fn unescape(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((&first, rest)) = text.split_first() {
        text = rest;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        match rest {
            [b'\\', rest @ ..] => {
                bytes.push(b'\\');
                text = rest;
            }
            [b'x', high, low, rest @ ..] => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push((digit(high)? * 16 + digit(low)?) as u8);
                text = rest;
            }
            _ => return None,
        }
    }
    Some(bytes)
}

/// A process id.
///
/// # Errors
/// It is not a number.
pub fn pid(text: &str) -> Result<u32, Refusal> {
    let text = text.trim();
    text.parse().map_err(|_| {
        Refusal::with_hint(
            format!("'{text}' is not a process id"),
            format!("to choose a process by its name: --comm {text}"),
        )
    })
}

/// How many lines to print.
///
/// # Errors
/// It is not a number above 0.
pub fn count(text: &str) -> Result<u64, Refusal> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        Err(_) if time(text).is_ok() => Err(Refusal::with_hint(
            format!("'{text}' is not a number of lines"),
            format!("to stop after a time: -d {text}"),
        )),
        _ => Err(format!("'{text}' is not a number of lines, at least 1").into()),
    }
}

/// How many keys to show.
///
/// # Errors
/// It is not a number above 0.
pub fn top(text: &str) -> Result<usize, Refusal> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!("'{text}' is not a number of keys, at least 1").into()),
    }
}

/// A user: a number, or a name of /etc/passwd.
///
/// # Errors
/// There is no such user in that file.
pub fn uid(text: &str) -> Result<u32, Refusal> {
    let text = text.trim();
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    match lookup::user_id(text) {
        Ok(Some(uid)) => Ok(uid),
        Ok(None) => Err(Refusal::with_hint(
            format!("no user '{text}' in {}", lookup::PASSWD),
            format!("a user from elsewhere (LDAP) is given by number: id -u {text}"),
        )),
        Err(error) => Err(format!(
            "'{text}' is not a number, and {} can't be read: {error}",
            lookup::PASSWD
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_may_have_the_names_of_the_kernel() {
        for text in [
            "no_socket",
            " NO_SOCKET",
            "SKB_DROP_REASON_NO_SOCKET",
            "SK_RST_REASON_NO_SOCKET",
        ] {
            assert_eq!(reason(text).as_deref(), Ok("no_socket"));
        }
    }

    #[test]
    fn times_are_seconds_or_have_units() {
        for (text, milliseconds) in [
            ("0.25", 250),
            ("90", 90_000),
            ("500ms", 500),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("90 s", 90_000),
        ] {
            assert_eq!(
                time(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for bad in [
            "0", "-1", "nan", "inf", "1e300", "", "2x", "never", "1s ago", "PT1M", "-5s", "500us",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_have_multiples() {
        assert_eq!(rate("200"), Ok(200.0));
        assert_eq!(rate("1.5k"), Ok(1500.0));
        assert_eq!(rate("2M"), Ok(2e6));
        for bad in ["0", "-1", "k", "", "1x", "nan", "inf", "1kk", "1µ"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_buffer_has_bytes_or_multiples_of_1024() {
        for (text, size) in [
            ("4096", 4096),
            ("64k", 65_536),
            ("16M", 16 << 20),
            ("1g", 1 << 30),
        ] {
            assert_eq!(buffer_size(text), Ok(size), "{text}");
        }
        for bad in [
            "0", "2048", "5000", "3m", "2g", "4096g", "k", "1kk", "-4096", "",
        ] {
            assert!(buffer_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_name_is_accepted_with_and_without_escapes() {
        assert_eq!(comm("billing worker"), Ok(b"billing worker".to_vec()));
        assert_eq!(comm("billing\\x20worker"), Ok(b"billing worker".to_vec()));
        assert_eq!(comm("a\\\\b\\xff"), Ok(b"a\\b\xff".to_vec()));
        for bad in ["", "a-name-of-sixteen", "a\\b", "a\\x2", "a\\xzz", "\\"] {
            assert!(comm(bad).is_err(), "{bad}");
        }
    }
}
