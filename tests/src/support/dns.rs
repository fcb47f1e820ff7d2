//! A name server of the test's own, over UDP and TCP: each name has a script of what it answers.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// What is answered to a question for a name.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// Addresses: those of the family that was asked for.
    Addresses(Vec<IpAddr>),
    /// In turn, by the number of the question for the name's IPv4 addresses; the last stays.
    Turns(Vec<Vec<IpAddr>>),
    /// The same, from the beginning again and again.
    Cycle(Vec<Vec<IpAddr>>),
    /// Another name stands for it, whose addresses are in the same answer where it has any.
    Alias(&'static str),
    /// This response code: 2 SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
    Code(u8),
    /// Nothing of the type, and no error.
    NoData,
    /// Not a byte.
    Nothing,
    /// "Too long for this transport", on whatever transport.
    Truncated,
}

#[derive(Debug, Default)]
struct Book {
    names: HashMap<String, Says>,
    asked: HashMap<String, usize>,
}

/// The server. What it has not been told of does not exist.
#[derive(Debug, Clone)]
pub(crate) struct Dns(Arc<Mutex<Book>>);

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

impl Dns {
    /// Listens where `resolv.conf` says.
    pub(crate) async fn start() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
        let dns = Self(Arc::default());
        let udp = UdpSocket::bind(address)
            .await
            .expect("port 53 is free in a namespace");
        let tcp = TcpListener::bind(address)
            .await
            .expect("port 53 is free in a namespace");
        let by_udp = dns.clone();
        tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((n, from)) = udp.recv_from(&mut question).await {
                if let Some(answer) = by_udp.answer(&question[..n], 512) {
                    udp.send_to(&answer, from).await.ok();
                }
            }
        });
        let by_tcp = dns.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                tokio::spawn(by_tcp.clone().talk(stream));
            }
        });
        dns
    }

    async fn talk(self, mut stream: TcpStream) {
        while let Ok(length) = stream.read_u16().await {
            let mut question = vec![0; usize::from(length)];
            if stream.read_exact(&mut question).await.is_err() {
                return;
            }
            let Some(answer) = self.answer(&question, 65_535) else {
                return;
            };
            let length = u16::try_from(answer.len()).expect("bounded");
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn says(&self, name: &str, says: Says) {
        self.book().names.insert(name.to_owned(), says);
    }

    /// How often a name's IPv4 addresses were asked for.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.book().asked.get(name).copied().unwrap_or_default()
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn answer(&self, question: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
        let (name, kind, end) = read(question)?;
        let mut book = self.book();
        if kind == A {
            *book.asked.entry(name.clone()).or_default() += 1;
        }
        let mut code = 0;
        let mut truncated = false;
        let mut records: Vec<Vec<u8>> = Vec::new();
        let mut at = name.clone();
        // The name of the question by reference: 4 000 records fit into 64 KiB only so.
        let owner = |at: &str| match at == name {
            true => vec![0xc0, 12],
            false => labels(at),
        };
        // An alias is followed here as a recursive server would, up to a bound of its own.
        for _ in 0..32 {
            match book.names.get(&at) {
                None => code = 3,
                Some(Says::Nothing) => return None,
                Some(Says::Truncated) => truncated = true,
                Some(Says::Code(said)) => code = *said,
                Some(Says::NoData) => {}
                Some(Says::Alias(other)) => {
                    records.push(record(&owner(&at), CNAME, &labels(other)));
                    at = (*other).to_owned();
                    continue;
                }
                Some(Says::Addresses(list)) => records.extend(of_kind(&owner(&at), kind, list)),
                Some(Says::Turns(turns)) => {
                    let turn = turn(&book, &at).min(turns.len() - 1);
                    records.extend(of_kind(&owner(&at), kind, &turns[turn]));
                }
                Some(Says::Cycle(turns)) => {
                    let turn = turn(&book, &at) % turns.len();
                    records.extend(of_kind(&owner(&at), kind, &turns[turn]));
                }
            }
            break;
        }
        let mut length = end;
        let fits = |record: &&Vec<u8>| {
            length += record.len();
            length <= bytes_max
        };
        let taken = records.iter().take_while(fits).count();
        truncated |= taken < records.len() && bytes_max == 512;
        let mut answer = question[..end].to_vec();
        // A response, recursion available, with the caller's wish for it.
        answer[2] = 0x80 | question[2] & 0x01 | if truncated { 0x02 } else { 0 };
        answer[3] = 0x80 | code;
        let count = if truncated { 0 } else { taken };
        let count = u16::try_from(count).expect("bounded");
        answer[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        for record in &records[..usize::from(count)] {
            answer.extend_from_slice(record);
        }
        Some(answer)
    }
}

/// The name in lower case, the type, and where the question ends.
fn read(question: &[u8]) -> Option<(String, u16, usize)> {
    let mut name = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = question.get(at..at + length)?;
        name.push(String::from_utf8_lossy(label).to_lowercase());
        at += length;
    }
    let kind = question.get(at..at + 2)?;
    question.get(at + 3)?;
    Some((
        name.join("."),
        u16::from_be_bytes([kind[0], kind[1]]),
        at + 4,
    ))
}

fn of_kind(owner: &[u8], kind: u16, list: &[IpAddr]) -> Vec<Vec<u8>> {
    let bytes = |address: &IpAddr| match (kind, address) {
        (A, IpAddr::V4(v4)) => Some(v4.octets().to_vec()),
        (AAAA, IpAddr::V6(v6)) => Some(v6.octets().to_vec()),
        _ => None,
    };
    list.iter()
        .filter_map(bytes)
        .map(|data| record(owner, kind, &data))
        .collect()
}

/// The number of the question that is being answered, from 0.
fn turn(book: &Book, name: &str) -> usize {
    book.asked.get(name).map_or(0, |n| n.saturating_sub(1))
}

/// A record that is valid for no time at all.
fn record(name: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("short");
    [
        name,
        &kind.to_be_bytes(),
        &[0, 1, 0, 0, 0, 0],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
