//! What strangers do to an open port. Whatever it is, they lose their connection and the member goes on.

mod support;

use std::{num::NonZeroUsize, time::Duration};

use server::{Server, ServerConfig, StartError};
use support::{Fake, PATIENCE, Up, any_port, config, kv, put, range, raw, up, up_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn assert_alive(up: &Up) {
    let mut kv = timeout(PATIENCE, kv(up.address)).await.expect("a new connection");
    timeout(PATIENCE, kv.put(put("alive", "1"))).await.expect("an answer").unwrap();
}

/// The server closes the connection without being asked twice.
async fn closed(up: &Up, bytes: &[u8]) -> Vec<u8> {
    timeout(PATIENCE, raw::until_closed(up.address, bytes)).await.expect("the server closes the connection")
}

#[tokio::test]
async fn garbage_closes_the_connection() {
    let up = up();
    // A simple generator with a fixed seed: the same bytes in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        })
        .take(length)
        .collect()
    };
    for length in [32, 100, 10_000, 300_000] {
        let mut bytes = noise(length);
        bytes.extend(b"\r\n\r\n");
        closed(&up, &bytes).await;
        closed(&up, &[PREFACE, &bytes].concat()).await;
    }
    closed(&up, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r?GET / HTTP/1.1\r\n\r\n").await;
    closed(&up, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n").await;
    assert_alive(&up).await;
}

#[tokio::test]
async fn header_read_timeout() {
    let up = up_with(ServerConfig {
        first_bytes_timeout: Duration::from_millis(50),
        header_read_timeout: Duration::from_millis(50),
        ..config()
    });
    for bytes in [
        &b""[..],
        b"P",
        b"PRI * HTTP/2.0\r\n",
        b"GET /health HTTP/1.1\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nslow: ",
    ] {
        let mut stream = TcpStream::connect(up.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // Nothing more is sent and the writing half stays open.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .unwrap_or_else(|_| panic!("half-open after {:?}", String::from_utf8_lossy(bytes)));
    }
    assert_alive(&up).await;
}

#[tokio::test]
async fn huge_heads_are_refused() {
    let up = up();
    let long = "x".repeat(200_000);
    let answer = closed(&up, format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {long}\r\n\r\n").as_bytes()).await;
    // The refusal may be lost when the kernel resets a connection with unread bytes; a page it must not be.
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    let many = "a: b\r\n".repeat(200);
    let answer = closed(&up, format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));

    let mut kv = kv(up.address).await;
    let mut request = tonic::Request::new(range("a", ""));
    request.metadata_mut().insert("long", long.parse().unwrap());
    timeout(PATIENCE, kv.range(request)).await.unwrap().unwrap_err();
    assert_alive(&up).await;
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle() {
    let up = up();
    for length in [0, 1, 5, 23, 24, 30] {
        let mut bytes = PREFACE.to_vec();
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        let mut stream = TcpStream::connect(up.address).await.unwrap();
        stream.write_all(&bytes[..length.min(bytes.len())]).await.unwrap();
        drop(stream);
    }
    assert_alive(&up).await;
}

#[tokio::test]
async fn beyond_the_limit_connections_are_refused() {
    let up = up_with(ServerConfig { connections_max: NonZeroUsize::new(2), ..config() });
    let first = TcpStream::connect(up.address).await.unwrap();
    let mut keeps = kv(up.address).await;
    keeps.put(put("a", "1")).await.unwrap();
    // Both seats are taken; whoever comes now is told in HTTP/2, or in its own protocol when it was quick.
    let answer = timeout(PATIENCE, raw::until_closed(up.address, b"")).await.unwrap();
    assert_eq!(&answer[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0], "an empty SETTINGS frame");
    assert_eq!(answer[12], 7, "then GOAWAY");
    keeps.put(put("a", "2")).await.unwrap();
    drop(first);
    // The seat comes free as soon as the server sees the end of the first connection.
    let freed = async {
        while !raw::http1(up.address, "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 200")
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, freed).await.expect("a seat comes free");
}

#[tokio::test]
async fn an_address_in_use_is_refused_by_name() {
    let up = up_with(ServerConfig { runtimes: NonZeroUsize::new(3), ..config() });
    for runtimes in [1, 3] {
        let mut listen = any_port();
        listen.address = up.address;
        let taken = ServerConfig {
            client: vec![listen],
            runtimes: NonZeroUsize::new(runtimes),
            ..ServerConfig::default()
        };
        let Err(error) = Server::start(taken, Fake::new()) else {
            panic!("two servers share a port, {runtimes} runtimes")
        };
        let StartError::Bind { setting, address, ref source } = error else { panic!("{error}") };
        assert_eq!((setting, address), ("listen-client-urls", up.address));
        assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("listen-client-urls"), "{error}");
    }
    assert_alive(&up).await;
}

#[tokio::test]
async fn several_runtimes_serve_one_address() {
    let up = up_with(ServerConfig { runtimes: NonZeroUsize::new(3), ..config() });
    for number in 0..32 {
        let mut kv = kv(up.address).await;
        kv.put(put("a", format!("{number}"))).await.unwrap();
    }
    let text = raw::http1(up.address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let line = "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 32";
    assert!(text.contains(line), "the counters of all runtimes are added up");
}

#[tokio::test]
async fn a_bound_server_does_not_listen_yet() {
    let bound = server::Bound::bind(config()).unwrap();
    let address = bound.client_addresses()[0];
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let running = Server::start_bound(bound, Fake::new()).unwrap();
    assert_eq!(running.client_addresses(), [address]);
    TcpStream::connect(address).await.unwrap();
}
