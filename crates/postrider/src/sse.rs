//! Server-sent events, read: what `listen` and `tail` get from the API.

use std::time::Duration;

use tokio::time::timeout;

/// The largest message: an event of 256 KiB, every byte of it escaped, and some more.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The server says something every 15 s: who hears nothing for longer has lost it.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Which kind it is.
    pub(crate) event: String,
    /// What it says.
    pub(crate) data: String,
}

/// Puts messages together from bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    bytes: Vec<u8>,
    event: String,
    data: Option<String>,
    id: Option<String>,
    /// The place that the last message left the reader at.
    last_id: Option<String>,
}

/// A message that no server of ours sends.
#[derive(Debug, thiserror::Error)]
#[error("a message of more than {MESSAGE_BYTES_MAX} bytes")]
pub(crate) struct TooLarge;

impl Parser {
    /// Takes what has come.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        let held = self.bytes.len() + self.data.as_ref().map_or(0, String::len);
        if held + bytes.len() > MESSAGE_BYTES_MAX {
            return Err(TooLarge);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole message.
    pub(crate) fn next(&mut self) -> Option<Message> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if !line.is_empty() {
                self.field(line);
                continue;
            }
            if let Some(id) = self.id.take() {
                self.last_id = Some(id);
            }
            let event = std::mem::take(&mut self.event);
            if let Some(data) = self.data.take() {
                return Some(Message { event, data });
            }
        }
        None
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event),
            "id" => self.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // A comment, or a word that is nothing to us.
            _ => {}
        }
    }
}

/// An answer that has no end.
#[derive(Debug)]
pub(crate) struct Stream {
    response: reqwest::Response,
    parser: Parser,
}

impl Stream {
    pub(crate) fn new(response: reqwest::Response) -> Self {
        Self {
            response,
            parser: Parser::default(),
        }
    }

    /// The next message, or in words why there is none. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Result<Message, String> {
        loop {
            if let Some(message) = self.parser.next() {
                return Ok(message);
            }
            let bytes = match timeout(SILENCE_MAX, self.response.chunk()).await {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => return Err("the server ended it".to_owned()),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(format!("nothing was heard for {SILENCE_MAX:?}")),
            };
            self.parser
                .push(&bytes)
                .map_err(|error| error.to_string())?;
        }
    }

    /// What `Last-Event-ID` has to say to go on from here.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.parser.last_id.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_put_together_wherever_they_are_cut() {
        let text = ": begun\nid: 1-0\n\nevent: event\ndata: {\"a\":\ndata: 1}\nid: 2-1\r\n\r\n\
                    data\n\nretry: 3\n\n: alive\n\n";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut found = Vec::new();
            for part in text.as_bytes().chunks(size) {
                parser.push(part).unwrap();
                while let Some(message) = parser.next() {
                    found.push((message.event, message.data, parser.last_id.clone()));
                }
            }
            let last = Some("2-1".to_owned());
            let wanted = [
                ("event".into(), "{\"a\":\n1}".into(), last.clone()),
                (String::new(), String::new(), last),
            ];
            assert_eq!(found, wanted, "in parts of {size}");
        }
    }

    #[test]
    fn an_id_alone_moves_the_place() {
        let mut parser = Parser::default();
        parser.push(b": alive\nid: 7-0\n\n").unwrap();
        assert_eq!(parser.next(), None);
        assert_eq!(parser.last_id.as_deref(), Some("7-0"));
    }

    #[test]
    fn a_message_without_an_end_is_refused() {
        let mut parser = Parser::default();
        let part = vec![b'x'; 1 << 20];
        let taken = (0..8).take_while(|_| parser.push(&part).is_ok()).count();
        assert_eq!(taken, 4);
    }
}
