//! One page of a member over plain HTTP: metrics, version, health. A request of HTTP/1.0, whose answer ends with the connection, so that
//! there is nothing to take apart but the head.

use super::{Dialer, endpoint::Endpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the TLS handshake offers.
pub const PROTOCOL: &[u8] = b"http/1.1";

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub status: u16,
    /// The server's clock, in seconds since 1970, when it told it.
    pub date: Option<i64>,
    pub body: String,
}

impl Dialer {
    /// Fetches a page of at most `bytes_max` bytes, head included. The caller bounds the wait.
    pub async fn get(&self, endpoint: &Endpoint, path: &str, bytes_max: u64) -> Result<Page, String> {
        let io = self.reach(endpoint).await?;
        let mut io =
            if endpoint.secure { self.secure(endpoint, io, self.tls_http1.as_ref()).await? } else { io };
        let request = format!(
            "GET {path} HTTP/1.0\r\nHost: {}\r\nUser-Agent: cairnctl/{}\r\n\r\n",
            endpoint.authority(),
            env!("CARGO_PKG_VERSION")
        );
        io.write_all(request.as_bytes()).await.map_err(|error| format!("send: {error}"))?;
        io.flush().await.map_err(|error| format!("send: {error}"))?;
        let mut answer = Vec::new();
        let read = io.take(bytes_max + 1).read_to_end(&mut answer).await;
        // A TLS server that closes without a farewell has still answered.
        if let Err(error) = read
            && answer.is_empty()
        {
            return Err(format!("read: {error}"));
        }
        if answer.len() as u64 > bytes_max {
            return Err(format!("the answer has more than {bytes_max} bytes"));
        }
        parse(&answer)
    }
}

fn parse(answer: &[u8]) -> Result<Page, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
        .ok_or("the answer is not HTTP")?;
    let date = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("date"))
        .and_then(|(_, value)| seconds(value.trim()));
    Ok(Page { status, date, body: body.to_owned() })
}

/// The seconds since 1970 of `Sun, 22 Nov 2026 17:36:41 GMT`, the only form that servers send.
fn seconds(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| (0..=9999).contains(number));
    let (day, year) = (number(day)?, number(year)?);
    let month = MONTHS.iter().position(|name| name == month)? as i64 + 1;
    let time: Option<Vec<i64>> = time.split(':').map(number).collect();
    let [hour, minute, second] = time?[..] else { return None };
    // Days from 1970, counting years from March so that the leap day is the last.
    let shifted = if month > 2 { year } else { year - 1 };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_status_a_clock_and_a_body() {
        let page = parse(b"HTTP/1.0 200 OK\r\ndate: Sun, 22 Nov 2026 17:36:41 GMT\r\n\r\na 1\n").unwrap();
        assert_eq!(page, Page { status: 200, date: Some(1_795_369_001), body: "a 1\n".into() });
        assert_eq!(parse(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap().status, 404);
        for no_page in [&b""[..], b"\x00\x00\x12\x04\x00", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 x\r\n\r\n"] {
            assert!(parse(no_page).is_err(), "{no_page:?}");
        }
    }

    #[test]
    fn dates_of_servers_are_understood() {
        for (date, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 12:00:01 GMT", Some(951_825_601)),
            ("Fri, 31 Dec 2100 23:59:59 GMT", Some(4_133_980_799)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Thu, 01 Foo 1970 00:00:00 GMT", None),
            ("", None),
        ] {
            assert_eq!(seconds(date), expected, "{date}");
        }
    }
}
