//! `strftime_now`: today's date, which some templates print.

use minijinja::{Error, ErrorKind, State};

/// The variable that holds the time of a rendering, in seconds since 1970. No template can name it.
pub(super) const VARIABLE: &str = " now";

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const DAY_SECONDS: i64 = 86_400;

/// The time of the rendering in a format of `strftime`, English names.
pub(super) fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let now = state.lookup(VARIABLE).and_then(|now| i64::try_from(now).ok()).unwrap_or(0);
    strftime(now, format)
}

fn strftime(unix_seconds: i64, format: &str) -> Result<String, Error> {
    let days = unix_seconds.div_euclid(DAY_SECONDS);
    let second = unix_seconds.rem_euclid(DAY_SECONDS);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = (days + 4).rem_euclid(7);
    let year_day = days - days_before(year, 1, 1) + 1;
    let hour12 = (hour + 11) % 12 + 1;
    let half = if hour < 12 { "AM" } else { "PM" };
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[weekday as usize]);

    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let number = |value: i64, width: usize| {
            if padded { format!("{value:0width$}") } else { value.to_string() }
        };
        text.push_str(&match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => {
                if padded {
                    format!("{day:2}")
                } else {
                    day.to_string()
                }
            }
            Some('j') => number(year_day, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('f') => "000000".to_owned(),
            Some('p') => half.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('u') => ((weekday + 6) % 7 + 1).to_string(),
            Some('w') => weekday.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('D' | 'x') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('X') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('s') => unix_seconds.to_string(),
            // A naive time has no zone, so Python prints nothing.
            Some('Z' | 'z') => String::new(),
            Some('n') => "\n".to_owned(),
            Some('t') => "\t".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: format %{code} is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(text)
}

/// Year, month and day of a day since 1970 in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // The mean year is 365.2425 days: the guess is at most one off.
    let mut year = 1970 + (days * 400).div_euclid(146_097);
    while days_before(year + 1, 1, 1) <= days {
        year += 1;
    }
    while days_before(year, 1, 1) > days {
        year -= 1;
    }
    let month = (2..=12).take_while(|&month| days_before(year, month, 1) <= days).last();
    let month = month.unwrap_or(1);
    (year, month, days - days_before(year, month, 1) + 1)
}

/// Days from 1970-01-01 to a date.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    const BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let past = year - 1;
    let leap_days = past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let this_year = BEFORE_MONTH[month as usize - 1] + i64::from(leap && month > 2) + day - 1;
    past * 365 + leap_days + this_year - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_known_days() {
        // date -u -d @SECONDS
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thursday 001"),
            (951_782_400, "2000-02-29 00:00:00 Tuesday 060"),
            (1_709_251_199, "2024-02-29 23:59:59 Thursday 060"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday 366"),
            (-1, "1969-12-31 23:59:59 Wednesday 365"),
            (4_107_542_400, "2100-03-01 00:00:00 Monday 060"),
        ] {
            assert_eq!(strftime(seconds, "%Y-%m-%d %H:%M:%S %A %j").unwrap(), expected);
        }
    }

    #[test]
    fn formats_of_templates_are_known_and_others_are_errors() {
        let date = |format| strftime(1_722_000_307, format).unwrap();
        assert_eq!(date("%d %b %Y"), "26 Jul 2024");
        assert_eq!(date("%B %-d, %Y %I:%M %p"), "July 26, 2024 01:25 PM");
        assert_eq!(date("%a %y %% %e"), "Fri 24 % 26");
        assert!(strftime(0, "%Q").is_err() && strftime(0, "%").is_err());
    }

    #[test]
    fn days_and_dates_are_inverse() {
        for days in (-800_000..800_000).step_by(17) {
            let (year, month, day) = civil(days);
            assert_eq!(days_before(year, month, day), days);
        }
    }
}
