//! Receivers, good and bad: real listeners on the loopback, blocking, a thread for each
//! connection. The threads end with their connections.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
};

pub struct Server {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (serve, count) = (Arc::new(serve), connections.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                thread::spawn(move || serve(stream.unwrap()));
            }
        });
        Self { address, connections }
    }

    /// Reads a request, answers it, and so on.
    pub fn answering(answer: &'static str) -> Self {
        Self::start(move |stream| converse(stream, answer))
    }

    /// The same behind TLS, with [`certificate`].
    pub fn answering_tls(answer: &'static str) -> Self {
        let key = PrivateKeyDer::try_from(STANDARD.decode(KEY).unwrap()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![CertificateDer::from(certificate())], key).unwrap());
        Self::start(move |stream| {
            converse(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream), answer);
        })
    }

    /// Reads a request and does with the connection what `then` does.
    pub fn once_asked(then: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start(move |mut stream| {
            if read_request(&mut stream).is_some() {
                // The client going away is how most of these conversations end.
                let _ = then(stream);
            }
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn converse(mut stream: impl Read + Write, answer: &str) {
    while read_request(&mut stream).is_some() && stream.write_all(answer.as_bytes()).is_ok() {}
}

/// Head and body as they came; None when the client is gone.
pub fn read_request(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8(body).unwrap())
}

/// A listener that must not be found.
pub struct Silent(TcpListener);

impl Silent {
    pub fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub fn nobody_came(&self) -> bool {
        self.0.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Made for these tests: for `receiver.test` and 127.0.0.1, signed by itself, valid from 2020 to 2120.
pub fn certificate() -> Vec<u8> {
    STANDARD.decode(CERTIFICATE).unwrap()
}

const CERTIFICATE: &str = "MIIBLzCB16ADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMMBHRlc3QwIBcNMjAwMTAxMDAwMDAwWh\
    gPMjEyMDAxMDEwMDAwMDBaMA8xDTALBgNVBAMMBHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ+h2oI+Co2w65V9+1gPUL/gqeIE/OasJGV\
    44426M0EW/nDbrL8NoQtcL9iK2ZxYHYPXjibbq9LT5XZOhUGCIt+oyIwIDAeBgNVHREEFzAVgg1yZWNlaXZlci50ZXN0hwR/AAABMAoGCCqGSM49BA\
    MCA0cAMEQCIC0aajsnsLpct0Vc7+16llwstxC7Lvo4srQuMEztLfJZAiAJmSYoymY1gzIbI/ADMVtTBgV9DK0wR/ll1AAsAZo4iQ==";
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZ+irgDhmMfx2WAKJjx9hYix0LgjWlEwTLuEquJev0qmhRAN\
    CAAQ+h2oI+Co2w65V9+1gPUL/gqeIE/OasJGV44426M0EW/nDbrL8NoQtcL9iK2ZxYHYPXjibbq9LT5XZOhUGCIt+";
