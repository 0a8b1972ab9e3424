//! What people type as a value: numbers, sizes, times, names, addresses. Each is checked where it is read, and an error
//! says what was expected: the words before it name flag and value.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::{StringValueParser, TypedValueParser};

/// Less would hardly hold a chunk.
const CAPACITY_MIN: u64 = 64 << 20;
/// Longer is a typing error, and sums of it with the time of day would leave their range.
const TIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A handshake and a request take their time on a busy machine, too.
const SERVER_WAIT_MIN: Duration = Duration::from_millis(100);

/// A whole number of this range.
pub(crate) fn whole<N>(range: RangeInclusive<N>) -> impl TypedValueParser<Value = N>
where
    N: TryFrom<u64> + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    StringValueParser::new().try_map(move |text| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits).and_then(|n: u64| N::try_from(n).ok());
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            format!("expected a whole number from {least} to {most}")
        })
    })
}

/// Reads `64MiB`, `1GiB`, `4096`: binary units, and decimal ones without the `i`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err("expected a size such as 64MiB".to_owned());
    }
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("unknown unit '{unit}': expected KiB, MiB, GiB, TiB")),
    };
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "more than 64 bits can say: expected less than 16777216TiB".to_owned())
}

/// What a chunkserver may hold.
pub(crate) fn parse_capacity(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size < CAPACITY_MIN => Err("a capacity is 64MiB or more".to_owned()),
        size => Ok(size),
    }
}

pub(crate) fn parse_chunk_size(text: &str) -> Result<u64, String> {
    use dfs_core::namespace::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
    let size = parse_size(text)?;
    if size.is_power_of_two() && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&size) {
        Ok(size)
    } else {
        Err("a chunk size is a power of two from 4KiB to 256MiB".to_owned())
    }
}

pub(crate) fn parse_record_max(text: &str) -> Result<u64, String> {
    use dfs_core::namespace::{CHUNK_BYTES_MAX, record_bytes_max};
    match parse_size(text)? {
        size if (1..=record_bytes_max(CHUNK_BYTES_MAX)).contains(&size) => Ok(size),
        _ => Err("expected a size from 1 to 4MiB".to_owned()),
    }
}

/// Reads `500ms`, `30s`, `5m`, `1h`, `14d`; a bare number means seconds.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err("expected a time such as 30s".to_owned());
    }
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!(
                "unknown unit '{unit}': expected ms, s, m, h or d, for example 10m"
            ));
        }
    };
    let number = digits.parse::<u64>().ok();
    let time = number.and_then(|number| number.checked_mul(factor)).map(Duration::from_millis);
    time.filter(|time| *time <= TIME_MAX)
        .ok_or_else(|| "longer than ten years: expected at most 87600h".to_owned())
}

/// How long to wait for servers. None at all would end every request before its answer.
pub(crate) fn parse_server_wait(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        time if time < SERVER_WAIT_MIN => {
            Err("no server answers so fast: expected 100ms or more, for example 30s".to_owned())
        }
        time => Ok(time),
    }
}

/// A name of a zone or a host, as it is shown in tables.
pub(crate) fn parse_domain(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.len() <= 253 && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("expected up to 253 letters, digits, '-', '.' or '_', for example eu-1a".to_owned())
    }
}

/// Whom a held mount's clients run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientUser {
    pub uid: u32,
    pub gid: u32,
}

/// `UID:GID` of someone who is not root: who serves a mount as root keeps root's privileges.
pub(crate) fn parse_user(text: &str) -> Result<ClientUser, String> {
    let id = |digits: &str| {
        let id = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?;
        // The kernel takes it as "leave it".
        id.filter(|&id| id != u32::MAX)
    };
    let parsed = text
        .split_once(':')
        .and_then(|(uid, gid)| Some(ClientUser { uid: id(uid)?, gid: id(gid)? }))
        .ok_or("not of the form UID:GID, two numbers as `id USER` shows them")?;
    if parsed.uid == 0 {
        return Err("0 is root, who keeps all privileges: name another user, or leave \
                    --client-user out"
            .to_owned());
    }
    Ok(parsed)
}

/// An address to serve at: no name, which could mean several.
pub(crate) fn parse_socket(text: &str) -> Result<SocketAddr, String> {
    let words = "expected IP:PORT, for example 127.0.0.1:7000 or [::1]:7000";
    text.parse().map_err(|_| words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_size(text: &str, expected: Option<u64>) {
        assert_eq!(parse_size(text).ok(), expected, "{text}");
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        check_size("4096", Some(4096));
        check_size("1MiB", Some(1 << 20));
        check_size("1m", Some(1 << 20));
        check_size("2GB", Some(2_000_000_000));
        check_size("1XiB", None);
        check_size("MiB", None);
        check_size("-1", None);
        check_size("99999999999TiB", None);
        check_size("16777215TiB", Some(16_777_215 << 40));
        check_size("16777216TiB", None);
    }

    #[test]
    fn chunk_sizes_are_powers_of_two_in_range() {
        assert_eq!(parse_chunk_size("4KiB"), Ok(4096));
        assert_eq!(parse_chunk_size("256MiB"), Ok(256 << 20));
        for bad in ["2KiB", "512MiB", "3MiB", "0"] {
            assert!(parse_chunk_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_time("5m"), Ok(Duration::from_secs(300)));
        assert!(parse_time("5 years").is_err());
    }

    #[test]
    fn times_end_at_ten_years_and_waits_begin_at_a_tenth_of_a_second() {
        assert_eq!(parse_time("87600h"), Ok(TIME_MAX));
        for long in ["87601h", "18446744073709551615ms", "99999999999999999999"] {
            assert!(parse_time(long).unwrap_err().contains("87600h"), "{long}");
        }
        assert_eq!(parse_server_wait("100ms"), Ok(SERVER_WAIT_MIN));
        for short in ["0", "0h", "99ms"] {
            assert!(parse_server_wait(short).unwrap_err().contains("100ms"), "{short}");
        }
    }
}
