//! AMQP 0-9-1 written by hand, for messages that no client library would write.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use url::Url;

/// Publishes `body` to `postrider.events` with one header: an array in an array in an array, so
/// many deep. Returns once the broker has confirmed it.
pub(crate) async fn publish_nested(url: &str, routing_key: &str, body: &[u8], levels: usize) {
    let mut nested = Vec::new();
    // From the inside: each level is a tag, a length, and what is in it.
    let mut sizes: Vec<u32> = (0..levels as u32).map(|level| level * 5).collect();
    sizes.reverse();
    for size in sizes {
        nested.push(b'A');
        nested.extend(size.to_be_bytes());
    }
    let mut table = Vec::new();
    table.push(3);
    table.extend(b"odd");
    table.extend(nested);
    let mut link = Link::open(url).await;
    // Basic.Publish: reserved, exchange, routing key, no bits.
    let mut publish = vec![0, 60, 0, 40, 0, 0];
    publish.extend(short("postrider.events"));
    publish.extend(short(routing_key));
    publish.push(0);
    link.send(1, 1, &publish).await;
    // The header: class, weight, size of the body, `headers` alone.
    let mut header = vec![0, 60, 0, 0];
    header.extend((body.len() as u64).to_be_bytes());
    header.extend([0x20, 0]);
    header.extend((table.len() as u32).to_be_bytes());
    header.extend(table);
    link.send(2, 1, &header).await;
    link.send(3, 1, body).await;
    // Basic.Ack, the confirm.
    link.wait_for(60, 80).await;
}

struct Link(TcpStream);

impl Link {
    /// Connects, opens channel 1 and asks for confirms.
    async fn open(url: &str) -> Self {
        let url = Url::parse(url).expect("the broker's URL");
        let port = url.port().unwrap_or(5672);
        let host = url.host_str().unwrap_or("127.0.0.1");
        let stream = TcpStream::connect((host, port)).await;
        let mut link = Self(stream.expect("the broker listens"));
        link.0.write_all(b"AMQP\0\0\x09\x01").await.expect("sent");
        link.wait_for(10, 10).await;
        // Start-Ok: no properties, PLAIN, the account, a locale.
        let mut start = vec![0, 10, 0, 11, 0, 0, 0, 0];
        start.extend(short("PLAIN"));
        let account = format!(
            "\0{}\0{}",
            url.username(),
            url.password().unwrap_or_default()
        );
        start.extend((account.len() as u32).to_be_bytes());
        start.extend(account.as_bytes());
        start.extend(short("en_US"));
        link.send(1, 0, &start).await;
        let tune = link.wait_for(10, 30).await;
        // Tune-Ok: the broker's own channel and frame bounds, no heartbeat.
        let mut answer = vec![0, 10, 0, 31];
        answer.extend(&tune[4..10]);
        answer.extend([0, 0]);
        link.send(1, 0, &answer).await;
        let mut open = vec![0, 10, 0, 40];
        let vhost = url.path().trim_start_matches('/');
        let vhost = if vhost.is_empty() { "/" } else { vhost };
        open.extend(short(&vhost.replace("%2f", "/").replace("%2F", "/")));
        open.extend([0, 0]);
        link.send(1, 0, &open).await;
        link.wait_for(10, 41).await;
        link.send(1, 1, &[0, 20, 0, 10, 0]).await;
        link.wait_for(20, 11).await;
        link.send(1, 1, &[0, 85, 0, 10, 0]).await;
        link.wait_for(85, 11).await;
        link
    }

    async fn send(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xCE);
        self.0.write_all(&frame).await.expect("sent");
    }

    /// Reads frames until a method of this class and number; its payload.
    async fn wait_for(&mut self, class: u16, method: u16) -> Vec<u8> {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).await.expect("a frame");
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut payload = vec![0; size + 1];
            self.0.read_exact(&mut payload).await.expect("its payload");
            payload.pop();
            if head[0] != 1 {
                continue;
            }
            let (got, number) = (&payload[0..2], &payload[2..4]);
            if got == class.to_be_bytes() && number == method.to_be_bytes() {
                return payload;
            }
            let closes = got == [0, 10] && number == [0, 50] || got == [0, 20] && number == [0, 40];
            assert!(!closes, "closed: {}", String::from_utf8_lossy(&payload));
        }
    }
}

fn short(text: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(text.len()).expect("a short string")];
    bytes.extend(text.as_bytes());
    bytes
}
