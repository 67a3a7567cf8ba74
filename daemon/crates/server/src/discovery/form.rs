//! What a v2 request asks: its query and its form, in the order and with the words in which etcd 3.4 finds fault with them. Pure.

use http::Method;

use super::answer::Refusal;

/// The fields that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub value: String,
    pub recursive: bool,
    pub sorted: bool,
    pub wait: bool,
    /// Zero: from now on.
    pub wait_index: u64,
    pub prev_exist: Option<bool>,
    /// cairn's own: also what is frozen.
    pub force: bool,
    /// A field that etcd takes and this service does not.
    pub unserved: Option<&'static str>,
}

/// Reads query and body; of a field that is given more than once the first one counts, and the body's before the query's.
pub(crate) fn read(method: &Method, query: &str, body: &[u8]) -> Result<Asked, Refusal> {
    let mut fields = pairs(body).map_err(Refusal::form)?;
    fields.extend(pairs(query.as_bytes()).map_err(Refusal::form)?);
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let number = |name: &str| match field(name).map(str::parse::<u64>) {
        None => Ok(0),
        // Rust reads a sign, Go does not.
        Some(Ok(number)) if !field(name).is_some_and(|text| text.starts_with('+')) => Ok(number),
        Some(_) => Err(Refusal::index(format!("invalid value for {name:?}"))),
    };
    let switch = |name: &str| match field(name) {
        None => Ok(false),
        Some(text) => boolean(text).ok_or_else(|| Refusal::field(format!("invalid value for {name:?}"))),
    };
    let bare = |name: &str| match field(name) {
        None => Ok(None),
        Some(text) => {
            boolean(text).map(Some).ok_or_else(|| Refusal::field(format!("invalid value for {name}")))
        }
    };

    number("prevIndex")?;
    let wait_index = number("waitIndex")?;
    let recursive = switch("recursive")?;
    let sorted = switch("sorted")?;
    let wait = switch("wait")?;
    let dir = switch("dir")?;
    switch("quorum")?;
    switch("stream")?;
    if wait && method != Method::GET {
        return Err(Refusal::field("\"wait\" can only be used with GET requests".into()));
    }
    if field("prevValue") == Some("") {
        return Err(Refusal::previous("\"prevValue\" cannot be empty".into()));
    }
    switch("noValueOnSuccess")?;
    if let Some(ttl) = field("ttl").filter(|ttl| !ttl.is_empty())
        && ttl.parse::<i64>().is_err()
    {
        return Err(Refusal::ttl("invalid value for \"ttl\"".into()));
    }
    let prev_exist = bare("prevExist")?;
    let refresh = bare("refresh")?.unwrap_or(false);
    let force = switch("force")?;

    let has = |name: &'static str, is: bool| is.then_some(name);
    let unserved = has("prevIndex", field("prevIndex").is_some())
        .or(has("prevValue", field("prevValue").is_some()))
        .or(has("ttl", field("ttl").is_some_and(|ttl| !ttl.is_empty())))
        .or(has("refresh", refresh))
        .or(has("dir", dir && method != Method::DELETE));
    let value = field("value").unwrap_or_default().to_owned();
    Ok(Asked { value, recursive, sorted, wait, wait_index, prev_exist, force, unserved })
}

/// As Go's library reads one.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The first field of this name in a query.
pub(crate) fn of_query(query: &str, name: &str) -> Result<Option<String>, String> {
    Ok(pairs(query.as_bytes())?.into_iter().find(|(key, _)| key == name).map(|(_, value)| value))
}

fn pairs(form: &[u8]) -> Result<Vec<(String, String)>, String> {
    form.split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let mut half = || unescape(halves.next().unwrap_or_default(), true);
            Ok((half()?, half()?))
        })
        .collect()
}

/// Percent escapes, and in forms a plus for a space.
pub(crate) fn unescape(text: &[u8], is_form: bool) -> Result<String, String> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let digit = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16));
                let (Some(high), Some(low)) = (digit(after.first()), digit(after.get(1))) else {
                    let shown = String::from_utf8_lossy(&after[..after.len().min(2)]).into_owned();
                    return Err(format!("invalid URL escape \"%{shown}\""));
                };
                plain.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            b'+' if is_form => plain.push(b' '),
            byte => plain.push(byte),
        }
    }
    String::from_utf8(plain).map_err(|_| "not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &Method, query: &str, body: &str) -> Result<Asked, String> {
        read(method, query, body.as_bytes()).map_err(|refusal| refusal.json(0))
    }

    #[test]
    fn the_questions_of_members() {
        let put =
            asked(&Method::PUT, "prevExist=false", "value=n1%3Dhttp%3A%2F%2F127.0.0.1%3A24011").unwrap();
        assert_eq!((put.value.as_str(), put.prev_exist), ("n1=http://127.0.0.1:24011", Some(false)));
        let wait = asked(&Method::GET, "recursive=true&wait=true&waitIndex=6", "").unwrap();
        assert_eq!((wait.recursive, wait.wait, wait.wait_index), (true, true, 6));
        let get = asked(&Method::GET, "quorum=false&recursive=false&sorted=false", "").unwrap();
        assert_eq!(get, Asked::default());
        let both = asked(&Method::PUT, "value=query&x", "value=body+1&value=2&&").unwrap();
        assert_eq!(both.value, "body 1");
        for (query, unserved) in
            [("ttl=5", "ttl"), ("prevIndex=1", "prevIndex"), ("prevValue=x", "prevValue"), ("dir=1", "dir")]
        {
            assert_eq!(asked(&Method::PUT, query, "").unwrap().unserved, Some(unserved));
        }
    }

    #[test]
    fn faults_in_the_words_and_order_of_etcd() {
        let field = |cause: &str| (209, "Invalid field", cause.to_owned());
        let not_number = "The given index in POST form is not a number";
        for (query, (code, message, cause)) in [
            ("wait=true", field("\\\"wait\\\" can only be used with GET requests")),
            (
                "prevValue=",
                (201, "PrevValue is Required in POST form", "\\\"prevValue\\\" cannot be empty".into()),
            ),
            ("recursive", field("invalid value for \\\"recursive\\\"")),
            ("noValueOnSuccess=x", field("invalid value for \\\"noValueOnSuccess\\\"")),
            ("refresh=x", field("invalid value for refresh")),
            ("prevExist=maybe", field("invalid value for prevExist")),
            (
                "prevIndex=x&recursive=x&ttl=x",
                (203, not_number, "invalid value for \\\"prevIndex\\\"".into()),
            ),
            ("waitIndex=-1&recursive=x", (203, not_number, "invalid value for \\\"waitIndex\\\"".into())),
            ("waitIndex=+1", (203, not_number, "invalid value for \\\"waitIndex\\\"".into())),
            (
                "waitIndex=99999999999999999999999",
                (203, not_number, "invalid value for \\\"waitIndex\\\"".into()),
            ),
            ("quorum=x&stream=x&sorted=x&ttl=x", field("invalid value for \\\"sorted\\\"")),
            ("dir=x&wait=x&stream=x", field("invalid value for \\\"wait\\\"")),
            ("wait=true&quorum=x", field("invalid value for \\\"quorum\\\"")),
            ("wait=true&prevValue=", field("\\\"wait\\\" can only be used with GET requests")),
            (
                "prevExist=x&ttl=x&refresh=x",
                (202, "The given TTL in POST form is not a number", "invalid value for \\\"ttl\\\"".into()),
            ),
            ("value=%zz", (210, "Invalid POST form", "invalid URL escape \\\"%zz\\\"".into())),
            ("value=%4", (210, "Invalid POST form", "invalid URL escape \\\"%4\\\"".into())),
            ("value=%ff", (210, "Invalid POST form", "not UTF-8".into())),
        ] {
            let expected = format!(
                "{{\"errorCode\":{code},\"message\":\"{message}\",\"cause\":\"{cause}\",\"index\":0}}\n"
            );
            // `%2B` would be a plus.
            let query = query.replace('+', "%2B");
            assert_eq!(asked(&Method::PUT, &query, ""), Err(expected), "{query}");
        }
    }
}
