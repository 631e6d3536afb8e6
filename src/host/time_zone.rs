//! The time zone of local times, as the C library finds it: from TZ, else from /etc/localtime.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;

/// Where zone files are, unless TZDIR says otherwise.
const ZONES: &str = "/usr/share/zoneinfo";

/// Zone files have a few KB.
const MAX_BYTES: u64 = 1 << 20;

/// Why times are not shown in the zone that was asked for.
#[derive(Debug)]
pub struct UnknownZone(pub String);

/// The zone of this process.
///
/// # Errors
/// TZ names no zone that this machine knows.
pub fn system() -> Result<TimeZone, UnknownZone> {
    let Some(name) = std::env::var_os("TZ") else {
        // Without /etc/localtime, local time is UTC.
        return Ok(TimeZone::try_system().unwrap_or(TimeZone::UTC));
    };
    let zones = std::env::var_os("TZDIR").unwrap_or_else(|| ZONES.into());
    named(&name, Path::new(&zones))
}

/// The zone that TZ names: a file, by its name in `zones` or by its path, else a rule such as
/// `CET-1CEST,M3.5.0,M10.5.0/3`.
///
/// jiff finds files by name only with its feature tzdb-zoneinfo, which first opens every zone
/// file, about 600 of them.
fn named(name: &OsStr, zones: &Path) -> Result<TimeZone, UnknownZone> {
    let name = name.to_string_lossy();
    let name = name.strip_prefix(':').unwrap_or(&name);
    if ["", "UTC"].contains(&name) {
        return Ok(TimeZone::UTC);
    }
    let path = zones.join(name);
    read(name, &path).or_else(|error| {
        TimeZone::posix(name).map_err(|_| {
            UnknownZone(format!(
                "the time zone TZ={name} is unknown ({}: {error}): times are in UTC",
                path.display()
            ))
        })
    })
}

fn read(name: &str, path: &PathBuf) -> io::Result<TimeZone> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    TimeZone::tzif(name, &bytes).map_err(|_| io::Error::other("not a time zone file"))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    /// The hour in this zone at the beginning of 1970-01-01 in UTC.
    fn hour(name: &str) -> Result<i8, String> {
        let zone = named(OsStr::new(name), Path::new(ZONES)).map_err(|unknown| unknown.0)?;
        Ok(Timestamp::UNIX_EPOCH.to_zoned(zone).hour())
    }

    #[test]
    fn zones_have_names_paths_and_rules() {
        assert_eq!(hour(""), Ok(0));
        assert_eq!(hour("UTC"), Ok(0));
        assert_eq!(hour("JST-9"), Ok(9));
        assert_eq!(hour(":<+05>-5"), Ok(5));
        assert_eq!(hour("CET-1CEST,M3.5.0,M10.5.0/3"), Ok(1));
        // Without tzdata there are no names.
        if Path::new(ZONES).join("Asia/Tokyo").exists() {
            assert_eq!(hour("Asia/Tokyo"), Ok(9));
            assert_eq!(hour(":Asia/Tokyo"), Ok(9));
            assert_eq!(hour("/usr/share/zoneinfo/Asia/Tokyo"), Ok(9));
        }
    }

    #[test]
    fn an_unknown_time_zone_is_named_in_the_error() {
        for name in [
            "Asia/Tokio",
            "/dev/null",
            "/dev/zero",
            "/",
            "no such",
            "a\nb",
        ] {
            let why = hour(name).unwrap_err();
            assert!(why.contains(name), "{name}: {why}");
        }
    }
}
