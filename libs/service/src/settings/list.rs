//! Lists that can be written in more than one way.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserializer,
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
