//! Where the next page begins: opaque to callers, checked when it comes back.
//!
//! A cursor holds the last row's place in an order that no row ever changes, so a list may grow
//! and shrink between pages without a row being skipped or repeated.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{Error, Page, Paging};

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 500;

/// A place in one of the lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The first order: a revision, or a time.
    pub(crate) at: i64,
    /// Breaks ties.
    pub(crate) id: String,
}

impl Cursor {
    /// As text, for this list alone.
    pub(crate) fn encode(&self, list: &str) -> String {
        URL_SAFE_NO_PAD.encode(format!("{list}:{}:{}", self.at, self.id))
    }

    fn decode(list: &str, text: &str) -> Option<Self> {
        let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (at, id) = plain
            .strip_prefix(list)?
            .strip_prefix(':')?
            .split_once(':')?;
        // Ids of ours, or an event's id and its tenant.
        let of_ours = id.len() <= 260 && id.bytes().all(|b| b.is_ascii_graphic());
        let cursor = Self {
            at: at.parse().ok().filter(|_| of_ours)?,
            id: id.to_owned(),
        };
        (cursor.encode(list) == text).then_some(cursor)
    }
}

/// A page that was asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    list: &'static str,
    /// Where it begins, after the row of this place.
    pub(crate) after: Option<Cursor>,
    limit: u32,
}

impl Wanted {
    /// Checks what a caller asked of `list`.
    pub(crate) fn new(list: &'static str, paging: &Paging) -> Result<Self, Error> {
        let decode = |text: &String| Cursor::decode(list, text).ok_or(Error::BadCursor);
        let after = paging.cursor.as_ref().map(decode).transpose()?;
        let limit = if paging.limit == 0 {
            LIMIT_DEFAULT
        } else {
            paging.limit.min(LIMIT_MAX)
        };
        Ok(Self { list, after, limit })
    }

    /// How many rows to fetch: one more than the page holds tells whether another follows.
    pub(crate) fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page of the rows that [`Self::fetch`] brought.
    pub(crate) fn page<R, T>(
        &self,
        mut rows: Vec<R>,
        place: impl Fn(&R) -> Cursor,
        read: impl Fn(R) -> Result<T, Error>,
    ) -> Result<Page<T>, Error> {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let cursor = rows
            .last()
            .filter(|_| more)
            .map(|row| place(row).encode(self.list));
        let items = rows.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Page { items, cursor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_only_to_its_own_list() {
        let cursor = Cursor {
            at: -7,
            id: "dl_1".into(),
        };
        let text = cursor.encode("dead");
        assert_eq!(Cursor::decode("dead", &text), Some(cursor));
        assert_eq!(Cursor::decode("tokens", &text), None);
    }

    #[test]
    fn foreign_cursors_are_refused() {
        let plain = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for text in [
            String::new(),
            "%%%".into(),
            plain("dead"),
            plain("dead:1"),
            plain("dead:x:dl_1"),
            plain("dead:+1:dl_1"),
            plain("dead:1:dl 1"),
            plain("dead:99999999999999999999:dl_1"),
            format!("{}=", plain("dead:1:dl_1")),
        ] {
            assert_eq!(Cursor::decode("dead", &text), None, "{text}");
        }
    }

    #[test]
    fn limits_are_kept_within_bounds() {
        for (asked, got) in [(0, 51), (1, 2), (500, 501), (501, 501), (u32::MAX, 501)] {
            let paging = Paging {
                cursor: None,
                limit: asked,
            };
            assert_eq!(Wanted::new("dead", &paging).unwrap().fetch(), got);
        }
    }
}
