//! Values that can be written in more than one way.

use std::{fmt, marker::PhantomData, str::FromStr, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

/// A list, or text with commas in between (as in the environment). For `#[serde(deserialize_with)]`.
///
/// # Errors
/// When an item can't be parsed.
pub fn comma_separated<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    struct Items<T>(PhantomData<T>);

    impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list, or text with commas between its items")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| item.parse().map_err(E::custom)).collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut parsed = Vec::new();
            while let Some(item) = items.next_element::<String>()? {
                parsed.push(item.parse().map_err(de::Error::custom)?);
            }
            Ok(parsed)
        }
    }

    deserializer.deserialize_any(Items(PhantomData))
}

/// A time such as `250ms`, `3s`, `5m` or `1h`, for `#[serde(with)]`.
pub mod duration {
    use serde::Serializer;

    use super::{Deserialize, Deserializer, Duration, de};

    /// Reads a time.
    ///
    /// # Errors
    /// When the text is not one.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is not a time such as 250ms, 3s, 5m or 1h")))
    }

    /// Writes a time.
    ///
    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = time.as_millis();
        if millis.is_multiple_of(1000) {
            serializer.collect_str(&format_args!("{}s", millis / 1000))
        } else {
            serializer.collect_str(&format_args!("{millis}ms"))
        }
    }

    pub(super) fn parse(text: &str) -> Option<Duration> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = text[..digits].parse().ok()?;
        let millis = match &text[digits..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        number.checked_mul(millis).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration::parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration::parse("5m"), Some(Duration::from_secs(300)));
        for wrong in ["5", "m", "1.5s", "-1s", "", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(duration::parse(wrong), None, "{wrong}");
        }
    }
}
