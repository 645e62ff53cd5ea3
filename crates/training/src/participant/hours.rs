//! Hours of the day: read, written, and whether it is time. Pure.
//!
//! ```text
//! 22:00-06:00          from ten in the evening to six in the morning, UTC
//! 22:00-06:00+02:00    the same, on a clock two hours ahead of UTC, the whole year
//! ```

use aivillage_base::wire::policy::Hours;

/// Minutes of a day.
const DAY: u16 = 24 * 60;
/// Milliseconds of a minute.
const MINUTE_MS: u64 = 60_000;
/// Largest distance of a clock to UTC, in minutes.
const OFFSET_MAX: i16 = 14 * 60;

/// `HH:MM-HH:MM`, and perhaps `+HH:MM` or `-HH:MM`: how far the clock is ahead of UTC.
#[must_use]
pub fn parse(text: &str) -> Option<Hours> {
    let (from, rest) = (text.get(..5)?, text.get(5..)?.strip_prefix('-')?);
    let (to, offset) = (rest.get(..5)?, rest.get(5..)?);
    let sign = match offset.chars().next() {
        None | Some('+') => 1,
        Some('-') => -1,
        Some(_) => return None,
    };
    let ahead = if offset.is_empty() { 0 } else { i16::try_from(minutes(&offset[1..])?).ok()? };
    let hours = Hours { from_min: minutes(from)?, to_min: minutes(to)?, offset_min: sign * ahead };
    (ahead <= OFFSET_MAX && hours.from_min < DAY).then_some(hours)
}

/// `HH:MM`, up to 24:00, in minutes.
fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok());
    let (hours, minutes): (u16, u16) = (number(hours)??, number(minutes)??);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= DAY).then_some(total)
}

/// As [`parse`] reads it.
#[must_use]
pub fn text(hours: &Hours) -> String {
    let clock = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
    let sign = if hours.offset_min < 0 { '-' } else { '+' };
    let zone = match hours.offset_min.unsigned_abs() {
        0 => String::new(),
        ahead => format!("{sign}{}", clock(ahead)),
    };
    format!("{}-{}{zone}", clock(hours.from_min), clock(hours.to_min))
}

/// Is it within any of these?
#[must_use]
pub fn open(hours: &[Hours], wall_ms: u64) -> bool {
    hours.iter().any(|hours| {
        let now = minute(hours, wall_ms);
        match hours.from_min < hours.to_min {
            true => (hours.from_min..hours.to_min).contains(&now),
            false => now >= hours.from_min || now < hours.to_min,
        }
    })
}

/// Milliseconds until the next of these begins; None if there are none. A clock that is set meanwhile makes it wrong.
#[must_use]
pub fn opens_in(hours: &[Hours], wall_ms: u64) -> Option<u64> {
    let wait = |hours: &Hours| {
        let minutes = (hours.from_min + DAY - minute(hours, wall_ms)) % DAY;
        let minutes = if minutes == 0 { DAY } else { minutes };
        u64::from(minutes) * MINUTE_MS - wall_ms % MINUTE_MS
    };
    hours.iter().map(wait).min()
}

/// Why it is not the time.
#[must_use]
pub(super) fn closed(hours: &[Hours], wall_ms: u64) -> String {
    if hours.is_empty() {
        return "this node takes part at no hour".to_owned();
    }
    let list: Vec<String> = hours.iter().map(text).collect();
    let utc = Hours { from_min: 0, to_min: 0, offset_min: 0 };
    let now = minute(&utc, wall_ms);
    format!("it is {:02}:{:02} UTC, and this node takes part at {} only", now / 60, now % 60, list.join(", "))
}

/// The minute of the day on the clock of these hours.
fn minute(hours: &Hours, wall_ms: u64) -> u16 {
    let day = i64::from(DAY);
    let utc = i64::try_from(wall_ms / MINUTE_MS).unwrap_or(0);
    let local = (utc + i64::from(hours.offset_min)).rem_euclid(day);
    u16::try_from(local).expect("invariant: less than a day")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u64, minute: u64) -> u64 {
        (20_000 * 24 * 60 + hour * 60 + minute) * MINUTE_MS + 1
    }

    #[test]
    fn hours_are_read_as_they_are_written() {
        for good in ["22:00-06:00", "00:00-24:00", "09:30-17:00+02:00", "09:30-17:00-05:30", "08:00-08:00"] {
            assert_eq!(parse(good).map(|hours| text(&hours)).as_deref(), Some(good));
        }
        for bad in ["", "22-06", "22:00", "22:00-6:00", "24:00-06:00", "22:60-06:00", "22:00-06:00Z", "22:00–06:00"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for bad in ["22:00-25:00", "22:00-06:00+15:00", "22:00-06:00 +02:00", "+2:00-06:00", "22:00-06:00+0a:00"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_window_holds_its_first_minute_and_not_its_last() {
        let open = |text: &str, at| open(&[parse(text).unwrap()], at);
        assert!(open("09:00-17:00", at(9, 0)) && open("09:00-17:00", at(16, 59)));
        assert!(!open("09:00-17:00", at(8, 59)) && !open("09:00-17:00", at(17, 0)));
        assert!(open("22:00-06:00", at(23, 0)) && open("22:00-06:00", at(5, 59)), "over midnight");
        assert!(!open("22:00-06:00", at(6, 0)) && !open("22:00-06:00", at(12, 0)));
        assert!(open("22:00-06:00+02:00", at(20, 0)) && !open("22:00-06:00+02:00", at(4, 0)), "ahead of UTC");
        assert!(open("22:00-06:00-05:00", at(3, 0)) && !open("22:00-06:00-05:00", at(2, 59)), "behind UTC");
        assert!(open("08:00-08:00", at(3, 0)) && open("00:00-24:00", at(23, 59)), "the whole day");
    }

    #[test]
    fn the_next_opening_is_a_moment_at_which_it_is_open() {
        let hours = [parse("22:00-06:00").unwrap(), parse("09:00-10:00+02:00").unwrap()];
        for (now, opening) in [(at(12, 0), at(22, 0)), (at(23, 30), at(31, 0)), (at(7, 0), at(22, 0))] {
            let wait = opens_in(&hours, now).unwrap();
            assert_eq!(now + wait, opening - 1, "from {now}");
            assert!(open(&hours, now + wait) && wait > 0);
        }
        assert_eq!(opens_in(&[], at(1, 0)), None);
    }
}
